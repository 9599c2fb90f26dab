package autoscaler

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Amount is an amount of memory: bytes, or a part of the machine's. The zero value is none.
type Amount struct {
	Bytes   int64
	Percent float64 // of the machine's memory; counts when it is not 0
}

// Of returns the amount in bytes on a machine that has so much memory.
func (m Amount) Of(machine int64) int64 {
	if m.Percent == 0 {
		return m.Bytes
	}
	return int64(math.Min(m.Percent/100*float64(machine), math.MaxInt64/2))
}

// String is the amount as one gives it: "64Mi" or "400%".
func (m Amount) String() string {
	if m.Percent != 0 {
		return strconv.FormatFloat(m.Percent, 'f', -1, 64) + "%"
	}
	return inBytes(m.Bytes)
}

// Type names the kind of value in the help of flags.
func (Amount) Type() string { return "size|percent" }

// UnmarshalText reads bytes ("64Mi", "0") or a part of the machine's memory ("400%").
func (m *Amount) UnmarshalText(text []byte) error {
	if number, found := strings.CutSuffix(string(text), "%"); found {
		percent, err := strconv.ParseFloat(number, 64)
		if err != nil || !(percent >= 0 && percent <= 1e6) { // written so that NaN does not pass
			return errors.New("not a percentage from 0% to 1000000%")
		}
		*m = Amount{Percent: percent}
		return nil
	}
	quantity, err := resource.ParseQuantity(string(text))
	if err != nil || quantity.Sign() < 0 || quantity.CmpInt64(math.MaxInt64/2) > 0 {
		return errors.New("not a size such as 64Mi, or a percentage of the machine's memory such as 5%")
	}
	*m = Amount{Bytes: quantity.Value()}
	return nil
}

// inBytes prints a number of bytes in the largest unit that leaves it whole, "512Mi", or to a tenth where it takes more
// digits than anybody reads.
func inBytes(n int64) string {
	units := []string{"", "Ki", "Mi", "Gi", "Ti"}
	i := 0
	for n != 0 && n%1024 == 0 && i < len(units)-1 {
		n, i = n/1024, i+1
	}
	if n < 10*1024 || i == len(units)-1 {
		return fmt.Sprintf("%d%s", n, units[i])
	}
	f := float64(n)
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + units[i]
}

func (m Amount) valid() bool { return m.Bytes >= 0 && m.Percent >= 0 }
