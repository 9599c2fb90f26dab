package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// overlayfs shows a directory as the topmost layer has it. A layer whose archive has an entry "tmp/x" and none
// for "tmp/" says nothing of tmp, yet the directory that it needs there would hide the /tmp that everybody may
// write to in the layer below. Where that is so, the image gets one more layer on top, which holds nothing but
// those directories as the layers below have them.

// attributes are what a directory has beside its entries.
type attributes struct {
	mode     uint32
	uid, gid int
	time     time.Time
}

// plain is how directories are made that an archive has no entry for.
func plain() attributes { return attributes{mode: 0o755} }

// sameAs compares without the time, which alone is no reason for a layer.
func (a attributes) sameAs(b attributes) bool {
	return a.mode == b.mode && a.uid == b.uid && a.gid == b.gid
}

// stack is the layers of an image, bottom first.
type stack []stacked

type stacked struct {
	tree    *tree
	implied map[string]bool
}

func (s stack) close() {
	for _, l := range s {
		l.tree.close()
	}
}

// openStack opens layers, which the caller has pinned.
func (s *Store) openStack(diffIDs []string) (layers stack, err error) {
	defer func() {
		if err != nil {
			layers.close()
		}
	}()
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, id := range diffIDs {
		l := s.layers[id]
		if l == nil {
			return layers, fmt.Errorf("layer %s was removed meanwhile", id)
		}
		fd, err := unix.Open(s.layerDir(id), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return layers, pathError("opening", s.layerDir(id), err)
		}
		implied := map[string]bool{}
		for _, name := range l.Implied {
			implied[name] = true
		}
		layers = append(layers, stacked{&tree{root: fd, lastOpen: -1}, implied})
	}
	return layers, nil
}

// hidden finds the directories that a layer hides without a word about them, and what they should be. Those
// above them are in the answer, too.
func (s stack) hidden() (map[string]attributes, error) {
	found := map[string]attributes{}
	if len(s) == 0 {
		return found, nil
	}
	seen := map[string]bool{}
	for _, l := range s[1:] {
		for name := range l.implied {
			if seen[name] {
				continue
			}
			seen[name] = true
			want, unspoken, err := s.meant(name)
			if err != nil {
				return nil, err
			}
			if !unspoken || want.sameAs(plain()) {
				continue
			}
			found[name] = want
			for above := path.Dir(name); above != "."; above = path.Dir(above) {
				if found[above], _, err = s.meant(above); err != nil {
					return nil, err
				}
			}
		}
	}
	return found, nil
}

// meant finds the attributes that name should have: those of the topmost layer that says something of it.
// unspoken tells that a layer above that one has the directory, too.
func (s stack) meant(name string) (a attributes, unspoken bool, err error) {
	for _, l := range slices.Backward(s) {
		found, there, through, err := l.look(name)
		if err != nil {
			return plain(), false, err
		}
		if there && !l.implied[name] {
			return found, unspoken, nil
		}
		unspoken = unspoken || there
		if !through {
			break
		}
	}
	return plain(), unspoken, nil
}

// look finds a directory in one layer. through tells whether the layers below show through there.
func (l stacked) look(name string) (a attributes, there, through bool, err error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	through = true
	var at string
	for part := range strings.SplitSeq(name, "/") {
		at = path.Join(at, part)
		fd, err := unix.Openat2(l.tree.root, at, &how)
		switch {
		case errors.Is(err, unix.ENOENT):
			return a, false, through, nil
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return a, false, false, nil // a file, a link or a whiteout
		case err != nil:
			return a, false, false, pathError("opening", at, err)
		}
		var s unix.Stat_t
		err = unix.Fstat(fd, &s)
		var value [1]byte
		if n, xattrErr := unix.Fgetxattr(fd, overlayOpaque, value[:]); xattrErr == nil && n == 1 {
			through = false
		}
		unix.Close(fd)
		if err != nil {
			return a, false, false, pathError("looking at", at, err)
		}
		a = attributes{mode: s.Mode & 0o7777, uid: int(s.Uid), gid: int(s.Gid), time: time.Unix(s.Mtim.Sec, s.Mtim.Nsec)}
	}
	return a, true, through, nil
}

// parents returns the name of the layer that shows the hidden directories, empty when the image needs none, and
// what makes it.
func (p *pull) parents(diffIDs []string) (id string, unpack func(*flight) (*layer, error), err error) {
	layers, err := p.store.openStack(diffIDs)
	if err != nil {
		return "", nil, err
	}
	defer layers.close()
	found, err := layers.hidden()
	if err != nil || len(found) == 0 {
		return "", nil, err
	}
	names := slices.Sorted(maps.Keys(found)) // a directory before what is in it
	sum := sha256.New()
	for _, name := range names {
		fmt.Fprintf(sum, "%q %o %d %d %d\n", name, found[name].mode, found[name].uid, found[name].gid, found[name].time.UnixNano())
	}
	id = "parents:" + hex.EncodeToString(sum.Sum(nil))
	return id, func(*flight) (*layer, error) {
		l := &layer{DiffID: id}
		work, err := os.MkdirTemp(p.store.tmp(), "parents-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(work)
		if err := makeParents(work, names, found); err != nil {
			return nil, err
		}
		return l, p.store.keep(work, l)
	}, nil
}

func makeParents(work string, names []string, found map[string]attributes) error {
	t, err := openTree(work)
	if err != nil {
		return err
	}
	defer t.close()
	for _, name := range names {
		fd, err := t.directory(name)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Fchown(fd, found[name].uid, found[name].gid), unix.Fchmod(fd, found[name].mode)); err != nil {
			return pathError("setting the mode of", name, err)
		}
	}
	for _, name := range slices.Backward(names) {
		fd, err := t.directory(name)
		if err != nil {
			return err
		}
		if err := setTime(fd, "", found[name].time); err != nil {
			return err
		}
	}
	return nil
}
