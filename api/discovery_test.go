package api

import (
	"testing"
)

func TestBuildMetadata_IsAllowedInASemanticVersion(t *testing.T) {
	for version, want := range map[string]string{"": "", "(devel)": ".devel", "(devel) 0123456789ab": ".devel.0123456789ab", "v1.2.3": ".1.2.3", "v0.0.0-2026+dirty": ".0.0.0-2026.dirty"} {
		if got := buildMetadata(version); got != want {
			t.Errorf("%q gives %q, want %q", version, got, want)
		}
	}
}
