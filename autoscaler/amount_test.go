package autoscaler

import "testing"

func TestAmount_ReadsAndPrintsBytesAndPercentages(t *testing.T) {
	const machine = 8 << 30
	for text, want := range map[string]struct {
		bytes int64
		text  string
	}{
		"0": {0, "0"}, "64Mi": {64 << 20, "64Mi"}, "1.5Gi": {3 << 29, "1536Mi"}, "100M": {100e6, "95.4Mi"},
		"0%": {0, "0"}, "50%": {4 << 30, "50%"}, "400%": {32 << 30, "400%"}, "0.5%": {machine / 200, "0.5%"},
	} {
		var got Amount
		if err := got.UnmarshalText([]byte(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if got.Of(machine) != want.bytes || got.String() != want.text {
			t.Errorf("%s is %d bytes and prints as %s, want %d and %s", text, got.Of(machine), got, want.bytes, want.text)
		}
	}
}

func TestAmount_RefusesWhatIsNone(t *testing.T) {
	for _, text := range []string{"", "-1", "much", "%", "-1%", "NaN%", "1e9%", "1e30", "9Ei"} {
		var got Amount
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for %s", text, got)
		}
	}
}
