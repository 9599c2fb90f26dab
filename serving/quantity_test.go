package serving_test

import (
	"testing"

	"github.com/berth-run/berth/serving"
)

func TestQuantityError_NamesTheField(t *testing.T) {
	for object, want := range map[string]string{
		`{"spec":{"containers":[{},{"resources":{"limits":{"cpu":1,"memory":"much"}}}]}}`: `spec.containers[1].resources.limits.memory: "much" is not a quantity: give a number with a unit, as 500m or 512Mi`,
		`{"spec":{"containers":[{"resources":{"requests":{"cpu":"x"}}}]}}`:                `spec.containers[0].resources.requests.cpu: "x" is not a quantity: give a number with a unit, as 500m or 512Mi`,
		`{"resources":{"limits":{"memory":"512Mi"}}}`:                                     "",
		`{"resources":["limits"]}`:                                                        "",
		`no JSON`:                                                                         "",
	} {
		got := ""
		if err := serving.QuantityError([]byte(object)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", object, got, want)
		}
	}
}
