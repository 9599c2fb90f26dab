package enginetest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/berth-run/berth/engine"
)

// Filled is a volume with files that stay as they are.
func Filled(name string, files ...engine.File) engine.Volume {
	return engine.Volume{Name: name, Files: func(string) func(context.Context) ([]engine.File, error) {
		return func(context.Context) ([]engine.File, error) { return files, nil }
	}}
}

// refused prepares and starts an instance that must fail for a reason, with an error that says something.
func refused(t *testing.T, s *Suite, spec engine.Spec, reason, says string) {
	t.Helper()
	i, err := s.Engine.Prepare(t.Context(), spec)
	if err == nil { // an engine may see it later
		defer i.Stop(0)
		err = i.Start(t.Context())
	}
	var failure *engine.StartError
	if !errors.As(err, &failure) || failure.Reason != reason || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want reason %s and %q", err, reason, says)
	}
}

func volumeHasItsFiles(t *testing.T, s *Suite) {
	var asked string
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.User = new(int64(1000))
		spec.Volumes = []engine.Volume{{Name: "conf", Files: func(instance string) func(context.Context) ([]engine.File, error) {
			asked = instance
			return func(context.Context) ([]engine.File, error) {
				return []engine.File{
					{Path: "plain", Mode: 0o644, Data: []byte("for all\n")},
					{Path: "deep/er/file", Mode: 0o444, Data: []byte{0, 1, 0xff}},
					{Path: "secret", Mode: 0o400, Data: []byte("for root")},
					{Path: "empty", Mode: 0o644},
				}, nil
			}
		}}}
		spec.Container.Mounts = []engine.Mount{{Volume: "conf", Path: "/made/for/conf", ReadOnly: true}, {Volume: "conf", Path: "/etc"}}
	}, "serve")
	if asked != i.ID() {
		t.Errorf("the files were asked for instance %q, want %q", asked, i.ID())
	}
	for path, want := range map[string]string{"plain": "for all\n", "deep/er/file": "\x00\x01\xff", "empty": ""} {
		if got := Get(t, i, "/read?path=/made/for/conf/"+path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	for path, want := range map[string]string{
		"plain": "-rw-r--r-- 0:0", "deep/er/file": "-r--r--r-- 0:0", "secret": "-r-------- 0:0", "deep/er": "drwxr-xr-x 0:0",
	} {
		if got := Get(t, i, "/stat?path=/made/for/conf/"+path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	if status, body := Request(t, i, http.MethodGet, "/read?path=/made/for/conf/secret"); status == http.StatusOK {
		t.Errorf("user 1000 reads what is for root only: %q", body)
	}
	if got := Get(t, i, "/list?path=/etc"); strings.Contains(got, "passwd") || !strings.Contains(got, "plain\n") {
		t.Errorf("a mount over the image's directory shows %q", got)
	}
	root := s.Start(t, func(spec *engine.Spec) {
		spec.Volumes = []engine.Volume{Filled("conf", engine.File{Path: "plain", Mode: 0o666})}
		spec.Container.Mounts = []engine.Mount{{Volume: "conf", Path: "/conf"}}
	}, "serve")
	for _, path := range []string{"/conf/plain", "/conf/new"} {
		if status, body := Request(t, root, http.MethodPost, "/write?path="+path); status == http.StatusOK || !strings.Contains(body, "read-only") {
			t.Errorf("root writes to %s, which the platform fills: %d %q", path, status, body)
		}
	}
}

func volumeIsMountedInParts(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.User = new(int64(1000))
		spec.Volumes = []engine.Volume{
			Filled("conf", engine.File{Path: "a", Mode: 0o644, Data: []byte("of a")}, engine.File{Path: "d/b", Mode: 0o644, Data: []byte("of b")}),
			{Name: "scratch"},
		}
		spec.Container.Mounts = []engine.Mount{
			{Volume: "conf", Path: "/etc/passwd", SubPath: "a"}, // over a file of the image
			{Volume: "conf", Path: "/new/file", SubPath: "d/b"},
			{Volume: "conf", Path: "/new/dir", SubPath: "d"},
			{Volume: "scratch", Path: "/scratch"},
			{Volume: "scratch", Path: "/part", SubPath: "made/here"},
			{Volume: "scratch", Path: "/fixed", SubPath: "made", ReadOnly: true},
		}
	}, "serve")
	for path, want := range map[string]string{"/etc/passwd": "of a", "/new/file": "of b", "/new/dir/b": "of b"} {
		if got := Get(t, i, "/read?path="+path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	if got := Get(t, i, "/list?path=/etc"); !strings.Contains(got, "group") {
		t.Errorf("beside the file that is mounted, /etc has %q", got)
	}
	if status, body := Request(t, i, http.MethodPost, "/write?path=/part/file&mib=1"); status != http.StatusOK {
		t.Fatalf("writing to a part of an empty volume: %s", body)
	}
	for _, path := range []string{"/scratch/made/here/file", "/fixed/here/file"} {
		if got := Get(t, i, "/read?path="+path); len(got) != 1<<20 {
			t.Errorf("%s has %d bytes", path, len(got))
		}
	}
	if status, body := Request(t, i, http.MethodPost, "/write?path=/fixed/file"); status == http.StatusOK || !strings.Contains(body, "read-only") {
		t.Errorf("a mount that is read-only takes a file: %q", body)
	}
}

func volumesAreMountedInEachOther(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Volumes = []engine.Volume{
			Filled("outer", engine.File{Path: "file", Mode: 0o644, Data: []byte("outer")}),
			Filled("inner", engine.File{Path: "file", Mode: 0o644, Data: []byte("inner")}),
			{Name: "scratch"},
		}
		spec.Container.Mounts = []engine.Mount{
			{Volume: "inner", Path: "/v/deep/inner"}, // the order is not the one of the paths
			{Volume: "scratch", Path: "/v/deep/inner-not/scratch"},
			{Volume: "outer", Path: "/v/"},
			{Volume: "inner", Path: "/v/deep/inner-not/scratch/in/here"},
		}
	}, "serve")
	for path, want := range map[string]string{"/v/file": "outer", "/v/deep/inner/file": "inner", "/v/deep/inner-not/scratch/in/here/file": "inner"} {
		if got := Get(t, i, "/read?path="+path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
}

func emptyVolumeIsWrittenTo(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.User = new(int64(65532))
		spec.Volumes = []engine.Volume{{Name: "small", SizeLimit: 4 << 20}, {Name: "large"}, {Name: "shm"}}
		spec.Container.Mounts = []engine.Mount{
			{Volume: "small", Path: "/small"}, {Volume: "large", Path: "/large"}, {Volume: "large", Path: "/again"}, {Volume: "shm", Path: "/dev/shm"},
		}
	}, "serve")
	for _, path := range []string{"/small", "/large", "/again", "/dev/shm"} {
		if got := Get(t, i, "/stat?path="+path); got != "drwxrwxrwx 0:0" {
			t.Errorf("%s is %s", path, got)
		}
		if got := Get(t, i, "/list?path="+path); got != "" {
			t.Errorf("%s is not empty: %q", path, got)
		}
	}
	for path, can := range map[string]bool{"/small/a": true, "/large/a": true, "/dev/shm/a": true} {
		if status, body := Request(t, i, http.MethodPost, "/write?mib=3&path="+path); (status == http.StatusOK) != can {
			t.Errorf("writing 3 MiB to %s: %d %s", path, status, body)
		}
	}
	if status, body := Request(t, i, http.MethodPost, "/write?mib=3&path=/small/b"); status == http.StatusOK || !strings.Contains(body, "no space left") {
		t.Errorf("a volume of 4 MiB takes 6: %q", body)
	}
	if got := Get(t, i, "/stat?path=/again/a"); !strings.HasSuffix(got, " 65532:0") {
		t.Errorf("a file written by user 65532, seen through another mount of the volume, is %s", got)
	}
	other := s.Start(t, func(spec *engine.Spec) {
		spec.Volumes = []engine.Volume{{Name: "large"}}
		spec.Container.Mounts = []engine.Mount{{Volume: "large", Path: "/large"}}
	}, "serve")
	if got := Get(t, other, "/list?path=/large"); got != "" {
		t.Errorf("another instance finds %q in its empty volume", got)
	}
}

func programIsInAVolume(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.Command = []string{"/tools/run"}
		spec.Volumes = []engine.Volume{Filled("tools", engine.File{Path: "run", Mode: 0o755, Data: []byte("#!/bin/program serve\n")})}
		spec.Container.Mounts = []engine.Mount{{Volume: "tools", Path: "/tools"}}
	})
	if args := strings.Join(Inspect(t, i).Args, " "); !strings.Contains(args, "/tools/run") {
		t.Errorf("it runs %q", args)
	}
}

func volumesThatCannotBeAreRefused(t *testing.T, s *Suite) {
	conf := Filled("conf", engine.File{Path: "a", Mode: 0o644}, engine.File{Path: "d/b", Mode: 0o644})
	for _, test := range []struct {
		volume engine.Volume
		mount  engine.Mount
		says   string
	}{
		{conf, engine.Mount{Volume: "conf", Path: "/conf", SubPath: "c"}, `"c"`},
		{conf, engine.Mount{Volume: "conf", Path: "/conf", SubPath: "../conf/a"}, `".."`},
		{conf, engine.Mount{Volume: "other", Path: "/conf"}, `"other"`},
		{conf, engine.Mount{Volume: "conf", Path: "/proc/self"}, "/proc"},
		{engine.Volume{Name: "conf"}, engine.Mount{Volume: "conf", Path: "/conf", SubPath: "../x"}, "leads out"},
		{Filled("conf", engine.File{Path: "a"}, engine.File{Path: "a/b"}), engine.Mount{Volume: "conf", Path: "/conf"}, `"a/b"`},
		{Filled("conf", engine.File{Path: "a"}, engine.File{Path: "a"}), engine.Mount{Volume: "conf", Path: "/conf"}, `"a"`},
		{Filled("conf", engine.File{Path: "../a"}), engine.Mount{Volume: "conf", Path: "/conf"}, `"../a"`},
		{Filled("conf", engine.File{Path: "..data"}), engine.Mount{Volume: "conf", Path: "/conf"}, `"..data"`},
		{Filled("conf", engine.File{Path: "big", Data: make([]byte, 17<<20)}), engine.Mount{Volume: "conf", Path: "/conf"}, "bytes"},
		{conf, engine.Mount{Volume: "conf", Path: "/bin/program/x"}, "not a directory"},
		{conf, engine.Mount{Volume: "conf", Path: "/etc/passwd"}, "the image has a file"},
		{conf, engine.Mount{Volume: "conf", Path: "/etc", SubPath: "a"}, "the image has a directory"},
		{
			engine.Volume{Name: "conf", Files: func(string) func(context.Context) ([]engine.File, error) {
				return func(context.Context) ([]engine.File, error) { return nil, fmt.Errorf("no such thing") }
			}},
			engine.Mount{Volume: "conf", Path: "/conf"}, `filling volume "conf": no such thing`,
		},
	} {
		refused(t, s, s.Spec(t, func(spec *engine.Spec) {
			spec.Volumes, spec.Container.Mounts = []engine.Volume{test.volume}, []engine.Mount{test.mount}
		}, "serve"), engine.ReasonVolume, test.says)
	}
}
