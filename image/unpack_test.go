package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-cmp/cmp"
)

// entryTime is the time of entries that have no other.
var entryTime = time.Unix(1_500_000_000, 0)

// makeTar makes an archive. Entries with no type and a name that ends in "/" are directories, others files.
func makeTar(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := h.Linkname
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(h.Name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Typeflag == tar.TypeReg {
			h.Linkname, h.Size = "", int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.ModTime.Nanosecond() != 0 {
			h.Format = tar.FormatPAX
		}
		if h.ModTime.IsZero() {
			h.ModTime = entryTime
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// reg is a regular file with content, which makeTar takes from Linkname.
func reg(name, content string) tar.Header { return tar.Header{Name: name, Linkname: content} }

func link(kind byte, name, target string) tar.Header {
	return tar.Header{Typeflag: kind, Name: name, Linkname: target}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("unpacking images needs root")
	}
}

// unpackTest unpacks into a folder beside one that must stay as it is.
func unpackTest(t testing.TB, archive []byte, limits Limits) (dir string, err error) {
	t.Helper()
	needRoot(t)
	top := t.TempDir()
	dir = filepath.Join(top, "root")
	outside := filepath.Join(top, "outside")
	for _, d := range []string{dir, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = unpack(dir, bytes.NewReader(archive), limits.orDefault(), slog.New(slog.DiscardHandler))
	if names := listTree(t, top); !cmp.Equal(filterOutside(names), []string{"outside/", "outside/secret=secret"}) {
		t.Errorf("files outside of the root were changed: %q", names)
	}
	return dir, err
}

func filterOutside(names []string) []string {
	var out []string
	for _, n := range names {
		if n != "root/" && !strings.HasPrefix(n, "root/") {
			out = append(out, n)
		}
	}
	return out
}

// listTree lists a folder: "dir/", "file=content", "link->target", "hidden=whiteout", "dir/=opaque".
func listTree(t testing.TB, dir string) []string {
	t.Helper()
	list := []string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			name += "/"
			var value [1]byte
			if n, err := unix.Lgetxattr(path, overlayOpaque, value[:]); err == nil && n == 1 && value[0] == 'y' {
				name += "=opaque"
			}
		case e.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			name += "->" + target
		case e.Type()&fs.ModeCharDevice != 0:
			name += "=whiteout"
		case e.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name += "=" + string(data)
		default:
			name += "=" + e.Type().String()
		}
		list = append(list, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestUnpack_MakesTheTreeThatTheArchiveMeans(t *testing.T) {
	for _, test := range []struct {
		name    string
		entries []tar.Header
		want    []string
	}{
		{"files, directories and links", []tar.Header{
			reg("./", ""), reg("./etc/", ""), reg("./etc/hosts", "h"), link(tar.TypeSymlink, "etc/link", "hosts"),
			link(tar.TypeLink, "etc/hard", "./etc/hosts"), {Typeflag: tar.TypeFifo, Name: "pipe"},
		}, []string{"etc/", "etc/hard=h", "etc/hosts=h", "etc/link->hosts", "pipe=p---------"}},
		{"absolute names stay inside", []tar.Header{reg("/etc/passwd", "p"), reg("//usr//bin/./x", "x")},
			[]string{"etc/", "etc/passwd=p", "usr/", "usr/bin/", "usr/bin/x=x"}},
		{"whiteouts", []tar.Header{reg("a/", ""), reg("a/.wh.gone", ""), reg(".wh.top", ""), reg("a/.wh..wh.plnk", "")},
			[]string{"a/", "a/gone=whiteout", "top=whiteout"}},
		{"an opaque directory, marked before or after what is in it", []tar.Header{
			reg("a/.wh..wh..opq", ""), reg("a/new", "n"), reg("b/new", "n"), reg("b/.wh..wh..opq", "")},
			[]string{"a/=opaque", "a/new=n", "b/=opaque", "b/new=n"}},
		{"whiteouts do not apply to their own layer", []tar.Header{
			reg("file", "f"), reg(".wh.file", ""), reg("dir/x", "x"), reg(".wh.dir", "")},
			[]string{"dir/=opaque", "dir/x=x", "file=f"}},
		{"what follows a whiteout replaces it", []tar.Header{
			reg(".wh.file", ""), reg("file", "f"), reg(".wh.dir", ""), reg("dir/", ""), reg(".wh.implied", ""), reg("implied/x", "x")},
			[]string{"dir/=opaque", "file=f", "implied/=opaque", "implied/x=x"}},
		{"a directory becomes a file and the reverse", []tar.Header{
			reg("a/b/c", "c"), reg("a", "file"), reg("b", "file"), reg("b/", ""), reg("b/c", "c")},
			[]string{"a=file", "b/", "b/c=c"}},
		{"a link becomes a directory", []tar.Header{
			link(tar.TypeSymlink, "a", "b"), reg("b/x", "x"), reg("a/", ""), reg("a/y", "y")},
			[]string{"a/", "a/y=y", "b/", "b/x=x"}},
		{"a link is replaced, not followed, by a file", []tar.Header{
			reg("target", "t"), link(tar.TypeSymlink, "a", "target"), reg("a", "new")},
			[]string{"a=new", "target=t"}},
		{"links above an entry are followed inside the root", []tar.Header{
			reg("usr/lib/", ""), link(tar.TypeSymlink, "lib", "/usr/lib"), reg("lib/x", "x"),
			link(tar.TypeSymlink, "up", "../../../usr"), reg("up/y", "y")},
			[]string{"lib->/usr/lib", "up->../../../usr", "usr/", "usr/lib/", "usr/lib/x=x", "usr/y=y"}},
		{"a hard link to itself", []tar.Header{reg("a", "a"), link(tar.TypeLink, "a", "a"), link(tar.TypeLink, "a", "/a")},
			[]string{"a=a"}},
		{"a hard link to a link", []tar.Header{link(tar.TypeSymlink, "a", "/outside/secret"), link(tar.TypeLink, "b", "a")},
			[]string{"a->/outside/secret", "b->/outside/secret"}},
		{"device nodes in /dev, which nobody sees", []tar.Header{reg("dev/", ""), {Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3}},
			[]string{"dev/"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, err := unpackTest(t, makeTar(t, test.entries...), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, listTree(t, dir)); diff != "" {
				t.Errorf("tree differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnpack_RefusesWhatIsNotAFileSystemImage(t *testing.T) {
	deep := strings.Repeat("d/", 3000)
	for _, test := range []struct {
		name    string
		entries []tar.Header
		want    string // part of the error
	}{
		{"leaving by ..", []tar.Header{reg("../outside/x", "x")}, `"../outside/x": its name has ".."`},
		{"leaving by .. inside", []tar.Header{reg("a/../../outside/x", "x")}, `".."`},
		{"leaving by a link", []tar.Header{link(tar.TypeSymlink, "a", "../outside"), reg("a/x", "x")}, `"a" above it is a symbolic link`},
		{"leaving by an absolute link", []tar.Header{link(tar.TypeSymlink, "a", "/tmp"), reg("a/x", "x")}, `"a" above it is a symbolic link`},
		{"leaving by a link through a magic link", []tar.Header{link(tar.TypeSymlink, "a", "/proc/self/root/tmp"), reg("a/x", "x")}, "symbolic link"},
		{"a hard link to the outside", []tar.Header{link(tar.TypeLink, "a", "../outside/secret")}, `".."`},
		{"a hard link through a link", []tar.Header{link(tar.TypeSymlink, "a", "../outside"), link(tar.TypeLink, "b", "a/secret")}, `"a/secret", which this layer does not have`},
		{"a hard link to nothing", []tar.Header{link(tar.TypeLink, "b", "nothing")}, `"nothing", which this layer does not have`},
		{"a hard link to a whiteout", []tar.Header{reg(".wh.x", ""), link(tar.TypeLink, "b", "x")}, `"x", which this layer does not have`},
		{"a hard link to a directory", []tar.Header{reg("d/", ""), link(tar.TypeLink, "b", "d")}, `"d", which is not a file`},
		{"a hard link into what it replaces", []tar.Header{reg("d/x", ""), link(tar.TypeLink, "d", "d/x")}, "inside what it replaces"},
		{"a whiteout of ..", []tar.Header{reg(".wh...", "")}, "whiteout of no name"},
		{"a whiteout of .", []tar.Header{reg("a/.wh..", "")}, "whiteout of no name"},
		{"a whiteout of nothing", []tar.Header{reg(".wh.", "")}, "whiteout of no name"},
		{"a block device", []tar.Header{{Typeflag: tar.TypeBlock, Name: "disk", Devmajor: 8}}, `"disk": it is a device node`},
		{"a character device", []tar.Header{{Typeflag: tar.TypeChar, Name: "etc/x", Devmajor: 1, Devminor: 3}}, `"etc/x": it is a device node`},
		{"a forged whiteout", []tar.Header{{Typeflag: tar.TypeChar, Name: "x"}}, `"x": it is a device node`},
		{"a name that is not UTF-8", []tar.Header{{Name: "a\xff", Typeflag: tar.TypeReg, Format: tar.FormatGNU}}, "non-UTF-8"},
		{"a file above an entry", []tar.Header{reg("a", "a"), reg("a/b", "b")}, `"a" above it is a file`},
		{"a link that leads to itself", []tar.Header{link(tar.TypeSymlink, "a", "a"), reg("a/b", "b")}, "too many levels"},
		{"a file in the place of the root", []tar.Header{reg("./.", "x")}, "root directory"},
		{"a name that is too long", []tar.Header{reg(strings.Repeat("n", 300), "x")}, "file name too long"},
		{"a path that is too long", []tar.Header{reg(deep+"x", "x")}, "file name too long"},
		{"an unknown type", []tar.Header{{Typeflag: 'Z', Name: "z"}}, `unknown type`},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := unpackTest(t, makeTar(t, test.entries...), Limits{})
			var refused *UnpackError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got error %v, want an UnpackError with %q", err, test.want)
			}
		})
	}
}

func TestUnpack_KeepsModesOwnersTimesAndAttributes(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	at := time.Unix(1_600_000_000, 123456789)
	dir, err := unpackTest(t, makeTar(t,
		tar.Header{Name: "./", Mode: 0o711},
		tar.Header{Name: "bin/", Mode: 0o2750, Uid: 10, Gid: 20, ModTime: at},
		tar.Header{Name: "bin/su", Mode: 0o4755, Uid: 70000, Gid: 80000, Linkname: "su", ModTime: at, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability":      capability,
			"SCHILY.xattr.user.note":                "n",
			"SCHILY.xattr.trusted.overlay.redirect": "/elsewhere",
			"SCHILY.xattr.trusted.other":            "x",
			"SCHILY.xattr.user.overlay.redirect":    "/elsewhere",
		}},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/link", Linkname: "su", Uid: 5, Gid: 6, ModTime: at},
		tar.Header{Name: "tmp/", Mode: 0o1777},
	), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	type attributes struct {
		Mode     uint32
		UID, GID uint32
		Time     time.Time
	}
	for name, want := range map[string]attributes{
		".":        {unix.S_IFDIR | 0o711, 0, 0, entryTime},
		"bin":      {unix.S_IFDIR | 0o2750, 10, 20, at},
		"bin/su":   {unix.S_IFREG | 0o4755, 70000, 80000, at},
		"bin/link": {unix.S_IFLNK | 0o777, 5, 6, at},
		"tmp":      {unix.S_IFDIR | 0o1777, 0, 0, entryTime},
	} {
		var s unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &s); err != nil {
			t.Fatal(err)
		}
		got := attributes{s.Mode, s.Uid, s.Gid, time.Unix(s.Mtim.Sec, s.Mtim.Nsec)}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	var list [1024]byte
	n, err := unix.Llistxattr(filepath.Join(dir, "bin/su"), list[:])
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Split(strings.Trim(string(list[:n]), "\x00"), "\x00"); len(got) != 2 ||
		!strings.Contains(string(list[:n]), "security.capability") || !strings.Contains(string(list[:n]), "user.note") {
		t.Errorf("attributes are %q, want security.capability and user.note", got)
	}
}

func TestUnpack_WritesStretchesOfZerosAsHoles(t *testing.T) {
	content := strings.Repeat("\x00", 8<<20) + "end"
	dir, err := unpackTest(t, makeTar(t, reg("sparse", content), reg("zero", strings.Repeat("\x00", 1<<20))), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if string(data) != content {
		t.Errorf("the file has %d bytes of other content", len(data))
	}
	var s syscall.Stat_t
	if err := syscall.Stat(filepath.Join(dir, "sparse"), &s); err != nil {
		t.Fatal(err)
	}
	if s.Blocks*512 > 1<<20 {
		t.Errorf("the file takes %d bytes on disk, want a hole for 8 MiB of zeros", s.Blocks*512)
	}
	if info, err := os.Stat(filepath.Join(dir, "zero")); err != nil || info.Size() != 1<<20 {
		t.Errorf("a file of zeros: %v, %v, want 1 MiB", info, err)
	}
}

func TestUnpack_StopsAtItsLimits(t *testing.T) {
	many := make([]tar.Header, 20)
	for i := range many {
		many[i] = reg(strings.Repeat("x", i+1), "")
	}
	for name, test := range map[string]struct {
		archive []byte
		limits  Limits
	}{
		"entries":             {makeTar(t, many...), Limits{Files: 10}},
		"implied directories": {makeTar(t, reg(strings.Repeat("d/", 30)+"x", ""), reg("y", "")), Limits{Files: 10}},
		"bytes":               {makeTar(t, reg("a", strings.Repeat("x", 600)), reg("b", strings.Repeat("x", 600))), Limits{Bytes: 1000}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := unpackTest(t, test.archive, test.limits); err == nil || !strings.Contains(err.Error(), "the server allows") {
				t.Errorf("got error %v, want one about the limit", err)
			}
		})
	}
}

func FuzzUnpack_NeverLeavesTheRoot(f *testing.F) {
	for _, entries := range [][]tar.Header{
		{reg("a/b", "x"), reg(".wh.c", ""), link(tar.TypeSymlink, "l", "../outside"), reg("l/x", "x")},
		{link(tar.TypeLink, "h", "a"), reg("a/.wh..wh..opq", ""), {Typeflag: tar.TypeFifo, Name: "p"}},
		{reg("d/", ""), link(tar.TypeSymlink, "d/up", ".."), reg("d/up/up2/", ""), link(tar.TypeLink, "d/up/h", "d/up/outside/secret")},
	} {
		f.Add(makeTar(f, entries...))
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		// unpackTest checks that nothing outside changed. Whether the archive is refused is not the question.
		_, err := unpackTest(t, archive, Limits{Files: 200, Bytes: 1 << 20})
		var refused *UnpackError
		if err != nil && !errors.As(err, &refused) {
			t.Errorf("got %v, want an UnpackError: an archive must not look like a fault of the machine", err)
		}
	})
}
