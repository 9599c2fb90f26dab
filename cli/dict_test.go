package cli

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplitPairs(t *testing.T) {
	for _, test := range []struct {
		texts []string
		want  []pair
		fails string
	}{
		{[]string{"A=1"}, []pair{{"A", "1"}}, ""},
		{[]string{"A=1,B=2"}, []pair{{"A", "1"}, {"B", "2"}}, ""},
		{[]string{"A=1", "B=2,A=3"}, []pair{{"A", "3"}, {"B", "2"}}, ""},
		{[]string{"A="}, []pair{{"A", ""}}, ""},
		{[]string{"A=x=y"}, []pair{{"A", "x=y"}}, ""},
		{[]string{"A= spaces "}, []pair{{"A", " spaces "}}, ""},
		{[]string{"A=1,"}, []pair{{"A", "1"}}, ""},
		{[]string{""}, nil, ""},
		{[]string{"^:^A=1,2:B=3"}, []pair{{"A", "1,2"}, {"B", "3"}}, ""},
		{[]string{"^@@^A=a@b@@B=3"}, []pair{{"A", "a@b"}, {"B", "3"}}, ""},
		{[]string{"^ ^A=1 B=2"}, []pair{{"A", "1"}, {"B", "2"}}, ""},
		{[]string{"A=1,2"}, nil, `"2" is not KEY=VALUE; where a value has a comma in it, give another delimiter`},
		{[]string{"A"}, nil, `"A" is not KEY=VALUE`},
		{[]string{"=1"}, nil, `"=1" has no name before the =`},
		{[]string{"^:A=1"}, nil, "has no second one"},
		{[]string{"^^A=1"}, nil, "has no delimiter between its carets"},
	} {
		got, err := splitPairs("set-env-vars", "variable", test.texts)
		if test.fails != "" {
			if err == nil || !strings.Contains(err.Error(), test.fails) {
				t.Errorf("%q: error %v, want %q in it", test.texts, err, test.fails)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", test.texts, err)
		}
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(pair{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", test.texts, diff)
		}
	}
}

func FuzzSplitList(f *testing.F) {
	for _, seed := range []string{"", "a", "a,b", "^:^a:b", "^", "^^", "^a", "^,^a,b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		items, err := splitList(text)
		if err == nil && !strings.HasPrefix(text, "^") && strings.Join(items, ",") != text {
			t.Errorf("%q became %q", text, items)
		}
	})
}
