package cli

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// parseTraffic reads "a=50 LATEST=50 #tag=a"; printTraffic is its reverse.
func parseTraffic(text string) *traffic {
	t := &traffic{}
	for word := range strings.FieldsSeq(text) {
		name, value, _ := strings.Cut(word, "=")
		if tagName, ok := strings.CutPrefix(name, "#"); ok {
			t.tags = append(t.tags, tag{tagName, value})
			continue
		}
		var percent int64
		fmt.Sscan(value, &percent)
		t.shares = append(t.shares, share{name, percent})
	}
	return t
}

func printTraffic(t *traffic) string {
	var words []string
	for _, s := range t.shares {
		words = append(words, fmt.Sprintf("%s=%d", s.revision, s.percent))
	}
	for _, g := range t.tags {
		words = append(words, "#"+g.name+"="+g.revision)
	}
	return strings.Join(words, " ")
}

func TestTrafficChange(t *testing.T) {
	pairs := func(text string) []pair {
		p, err := splitPairs("f", "x", []string{text})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, test := range []struct {
		name   string
		now    string
		change trafficChange
		want   string // or, after "error:", a part of the error
	}{
		{"to latest", "a=60 b=40 #t=a", trafficChange{toLatest: true}, "LATEST=100 #t=a"},
		{"all to one", "a=100", trafficChange{toRevisions: pairs("b=100")}, "b=100"},
		{"the rest stays", "a=100", trafficChange{toRevisions: pairs("b=10")}, "b=10 a=90"},
		{"the rest in proportion", "a=60 b=20 c=20", trafficChange{toRevisions: pairs("c=60")}, "c=60 a=30 b=10"},
		{"rounding adds up", "a=1 b=1 c=1 d=97", trafficChange{toRevisions: pairs("d=0")}, "a=34 b=33 c=33"},
		{"more than before", "a=50 b=50", trafficChange{toRevisions: pairs("a=50,b=50")}, "a=50 b=50"},
		{"latest by name", "a=100", trafficChange{toRevisions: pairs("LATEST=50")}, "LATEST=50 a=50"},
		{"percent sign", "a=100", trafficChange{toRevisions: pairs("b=100%")}, "b=100"},
		{"tags", "a=100 #t=b", trafficChange{toTags: pairs("t=30")}, "b=30 a=70 #t=b"},
		{"two tags of one revision", "a=100 #t=b #u=b", trafficChange{toTags: pairs("t=30,u=70")}, "b=100 #t=b #u=b"},
		{"new tag with traffic", "a=100", trafficChange{updateTags: pairs("t=b"), toTags: pairs("t=100")}, "b=100 #t=b"},
		{"set tags", "a=100 #x=a #y=b", trafficChange{clearTags: true, updateTags: pairs("z=c")}, "a=100 #z=c"},
		{"update tags", "a=100 #x=a #y=b", trafficChange{updateTags: pairs("x=c,z=c")}, "a=100 #x=c #y=b #z=c"},
		{"remove tags", "a=100 #x=a #y=b", trafficChange{removeTags: []string{"x"}}, "a=100 #y=b"},
		{"clear tags", "a=100 #x=a", trafficChange{clearTags: true}, "a=100"},

		{"too much", "a=100", trafficChange{toRevisions: pairs("a=60,b=50")}, "error:adds up to 110 percent, and must be 100: a=60, b=50"},
		{"too little", "a=100", trafficChange{toRevisions: pairs("a=60,b=30")}, "error:adds up to 90 percent, and must be 100: a=60, b=30 (no other revision"},
		{"no number", "a=100", trafficChange{toRevisions: pairs("a=x")}, `error:"x" is not a percentage`},
		{"negative", "a=100", trafficChange{toRevisions: pairs("a=-1,b=101")}, "error:not a percentage"},
		{"unknown tag", "a=100 #x=a", trafficChange{toTags: pairs("y=100")}, `error:no tag "y"; it has: x`},
		{"remove unknown tag", "a=100", trafficChange{removeTags: []string{"y"}}, `error:no tag "y" to remove; it has: none`},
		{"tag without revision", "a=100", trafficChange{updateTags: pairs("y=")}, `error:tag "y" has no revision`},
	} {
		t.Run(test.name, func(t *testing.T) {
			now := parseTraffic(test.now)
			err := test.change.apply(now)
			if part, fails := strings.CutPrefix(test.want, "error:"); fails {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("error %v, want %q in it", err, part)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := printTraffic(now); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestTraffic_SurvivesTheWire(t *testing.T) {
	for _, text := range []string{"LATEST=100", "a=60 LATEST=40 #t=a #u=LATEST", "a=100 #t=b"} {
		if diff := cmp.Diff(text, printTraffic(readTraffic(parseTraffic(text).targets()))); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if got := printTraffic(readTraffic(nil)); got != "LATEST=100" {
		t.Errorf("no traffic is %q, want all to the latest", got)
	}
}
