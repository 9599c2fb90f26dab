package image

import (
	"archive/tar"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/testimage"
)

func TestPull_KeepsTheAttributesOfDirectoriesThatALayerOnlyImplies(t *testing.T) {
	registry := testimage.Serve(t, testimage.Options{})
	s := openTest(t, t.TempDir(), Options{})
	base := gzipLayer(t, makeTar(t,
		tar.Header{Name: "tmp/", Mode: 0o1777},
		tar.Header{Name: "srv/", Mode: 0o700, Uid: 5},
		tar.Header{Name: "srv/data/", Mode: 0o750, Uid: 6, Gid: 7},
		tar.Header{Name: "plain/", Mode: 0o755},
		tar.Header{Name: "gone/", Mode: 0o1777},
		tar.Header{Name: "said/", Mode: 0o1777},
	))
	implying := gzipLayer(t, makeTar(t,
		reg("tmp/x", ""), reg("srv/data/y", ""), reg("plain/z", ""), reg("new/z", ""),
		reg(".wh.gone", ""), reg("gone/z", ""), tar.Header{Name: "said/", Mode: 0o700}, reg("said/z", ""),
	))
	image, err := resolveAndPull(t, s, registry.Push(t, makeImage(t, base, implying), "hello:v1"), Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if len(image.Layers) != 3 {
		t.Fatalf("there are %d layers, want a third with the directories", len(image.Layers))
	}
	if diff := cmp.Diff([]string{"srv/", "srv/data/", "tmp/"}, listTree(t, image.Layers[2])); diff != "" {
		t.Errorf("the third layer (-want +got):\n%s", diff)
	}
	for name, want := range map[string][3]uint32{"tmp": {0o1777, 0, 0}, "srv": {0o700, 5, 0}, "srv/data": {0o750, 6, 7}} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(image.Layers[2], name), &st); err != nil {
			t.Fatal(err)
		}
		if got := [3]uint32{st.Mode & 0o7777, st.Uid, st.Gid}; got != want {
			t.Errorf("%s has %o, want %o", name, got, want)
		}
	}

	again, err := resolveAndPull(t, s, registry.Push(t, makeImage(t, base, gzipLayer(t, makeTar(t, reg("plain/z", "")))), "hello:v2"), Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if len(again.Layers) != 2 {
		t.Errorf("an image that needs none got a third layer: %q", again.Layers)
	}
	if _, err := s.Collect(t.Context(), []string{image.Ref}, 0); err != nil {
		t.Fatal(err)
	}
	if got := listTree(t, image.Layers[2]); len(got) != 3 {
		t.Errorf("after collecting, the third layer holds %q", got)
	}
}
