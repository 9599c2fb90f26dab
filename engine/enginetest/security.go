package enginetest

import (
	"net/http"
	"slices"
	"testing"

	"github.com/berth-run/berth/engine"
)

func rootIsRefused(t *testing.T, s *Suite) {
	refused(t, s, s.Spec(t, func(spec *engine.Spec) { spec.Container.NonRoot = true }), engine.ReasonInvalidUser, "its image names no USER")
	refused(t, s, s.Spec(t, func(spec *engine.Spec) {
		spec.Container.NonRoot, spec.Container.User = true, new(int64(0))
	}), engine.ReasonInvalidUser, "runAsUser 0 is root")
	i := s.Start(t, func(spec *engine.Spec) { spec.Container.NonRoot, spec.Container.User = true, new(int64(1000)) })
	if found := Inspect(t, i); found.UID != 1000 {
		t.Errorf("it runs as %d", found.UID)
	}
}

func rootThatIsReadOnly(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.ReadOnly, spec.Container.WorkingDir = true, "/made/for/me"
		spec.Volumes = []engine.Volume{{Name: "scratch"}}
		spec.Container.Mounts = []engine.Mount{{Volume: "scratch", Path: "/scratch"}}
	})
	for path, want := range map[string]int{
		"/file": http.StatusInsufficientStorage, "/tmp/file": http.StatusInsufficientStorage, "/etc/hosts": http.StatusInsufficientStorage,
		"/scratch/file": http.StatusOK, "/dev/shm/file": http.StatusOK,
	} {
		if status, body := Request(t, i, http.MethodPost, "/write?path="+path); status != want {
			t.Errorf("writing %s: status %d, want %d: %s", path, status, want, body)
		}
	}
}

func capabilitiesAreDropped(t *testing.T, s *Suite) {
	const none, bind, bindAndChown = "0000000000000000", "0000000000000400", "0000000000000401"
	for _, test := range []struct {
		drop, add []string
		want      string
	}{
		{drop: []string{"ALL"}, want: none},
		{drop: []string{"all"}, add: []string{"NET_BIND_SERVICE"}, want: bind},
		{drop: []string{"ALL"}, add: []string{"CAP_NET_BIND_SERVICE", "CHOWN"}, want: bindAndChown},
	} {
		i := s.Start(t, func(spec *engine.Spec) { spec.Container.Drop, spec.Container.Add = test.drop, test.add })
		status := Inspect(t, i).Status
		for _, field := range []string{"CapBnd", "CapEff", "CapPrm"} {
			if got := statusField(status, field); got != test.want {
				t.Errorf("drop %q, add %q: %s is %s, want %s", test.drop, test.add, field, got, test.want)
			}
		}
	}
	before := statusField(Inspect(t, s.Start(t, nil)).Status, "CapBnd")
	if after := statusField(Inspect(t, s.Start(t, func(spec *engine.Spec) { spec.Container.Drop = []string{"NET_RAW"} })).Status, "CapBnd"); after == before {
		t.Errorf("without NET_RAW the capabilities are %s, as with it", after)
	}
	if again := statusField(Inspect(t, s.Start(t, nil)).Status, "CapBnd"); again != before {
		t.Errorf("what one container drops, another has not: %s, was %s", again, before)
	}
}

func groupIsTheOneAskedFor(t *testing.T, s *Suite) {
	i := s.Start(t, func(spec *engine.Spec) {
		spec.Container.User, spec.Container.Group = new(int64(1000)), new(int64(3000))
	})
	if found := Inspect(t, i); found.UID != 1000 || found.GID != 3000 || !slices.Equal(found.Groups, []int{50}) {
		t.Errorf("it runs as %d:%d %v, want 1000:3000 [50]", found.UID, found.GID, found.Groups)
	}
}
