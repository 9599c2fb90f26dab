package cli

import (
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/berth-run/berth/server"
)

// settings is a struct with a field of each type that settings have.
type settings struct {
	Text    string          `flag:"text" help:"x"`
	List    []string        `flag:"list" help:"x"`
	Yes     bool            `flag:"yes" help:"x"`
	Count   int             `flag:"count" help:"x"`
	Ratio   float64         `flag:"ratio" help:"x"`
	Wait    time.Duration   `flag:"wait" help:"x"`
	Size    server.ByteSize `flag:"size" help:"x"`
	Network netip.Prefix    `flag:"network" help:"x"`
	Inner   struct {
		Deep int `flag:"deep" help:"x"`
	}
	NotASetting int
}

func parse(args string) (*settings, error) {
	s := &settings{List: []string{"default"}}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	bindStruct(flags, reflect.ValueOf(s).Elem())
	return s, flags.Parse(strings.Fields(args))
}

func TestBindStruct_SetsFieldsOfEveryType(t *testing.T) {
	var s settings
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	bindStruct(flags, reflect.ValueOf(&s).Elem())
	args := "--text=a --list=a,b --list c --yes --count 3 --ratio 0.5 --wait 5m --size 16Mi --network 10.0.0.0/8 --deep 2"
	if err := flags.Parse(strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	want := settings{
		Text: "a", List: []string{"a", "b", "c"}, Yes: true, Count: 3, Ratio: 0.5, Wait: 5 * time.Minute,
		Size: 16 << 20, Network: netip.MustParsePrefix("10.0.0.0/8"),
	}
	want.Inner.Deep = 2
	if diff := cmp.Diff(want, s, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBindStruct_KeepsDefaultsAndRefusesWhatDoesNotParse(t *testing.T) {
	if s, err := parse(""); err != nil || len(s.List) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	for args, says := range map[string]string{
		"--yes=maybe": "not true or false", "--count x": "not a whole number", "--ratio x": "not a number",
		"--wait soon": "not a duration such as", "--size big": "not a size such as 16Mi", "--network x": "--network",
	} {
		if _, err := parse(args); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error %v, want %q in it", args, err, says)
		}
	}
}

func TestBindStruct_PrintsSettingsAsOneGivesThem(t *testing.T) {
	for value, want := range map[any]string{
		5 * time.Minute: "5m", time.Hour: "1h", 90 * time.Second: "1m30s", time.Duration(0): "0s",
		server.ByteSize(16 << 20): "16Mi", netip.Prefix{}: "", 0.7: "0.7", true: "true",
	} {
		got := (&fieldValue{field: reflect.ValueOf(value)}).String()
		if got != want {
			t.Errorf("%T %v prints as %q, want %q", value, value, got, want)
		}
	}
}
