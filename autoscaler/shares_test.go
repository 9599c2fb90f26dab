package autoscaler

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestShares_DividesMemory(t *testing.T) {
	// size, least, wants, holds
	for name, c := range map[string]struct {
		total  int64
		claims []claim
		want   []int
	}{
		"nobody":                               {10, nil, []int{}},
		"enough for all":                       {10, []claim{{1, 0, 3, 0}, {2, 0, 2, 0}}, []int{3, 2}},
		"nothing is wanted":                    {10, []claim{{1, 0, 0, 0}, {1, 0, 0, 3}}, []int{0, 0}},
		"all greedy":                           {9, []claim{{1, 0, 100, 9}, {1, 0, 100, 0}, {1, 0, 100, 0}}, []int{3, 3, 3}},
		"one greedy beside small ones":         {10, []claim{{1, 0, 100, 10}, {1, 0, 1, 0}, {1, 0, 2, 0}}, []int{7, 1, 2}},
		"what one leaves goes to the others":   {10, []claim{{1, 0, 2, 0}, {1, 0, 8, 0}, {1, 0, 8, 0}}, []int{2, 4, 4}},
		"by memory and not by number":          {12, []claim{{1, 0, 100, 0}, {3, 0, 100, 0}}, []int{6, 2}},
		"the odd one stays where it is":        {5, []claim{{1, 0, 9, 2}, {1, 0, 9, 3}}, []int{2, 3}},
		"the odd one goes to the first":        {5, []claim{{1, 0, 9, 0}, {1, 0, 9, 0}}, []int{3, 2}},
		"first instances before least numbers": {4, []claim{{1, 4, 4, 4}, {1, 0, 1, 0}}, []int{3, 1}},
		"least numbers before the rest":        {8, []claim{{1, 5, 5, 0}, {1, 0, 8, 8}}, []int{5, 3}},
		"least numbers that do not fit":        {4, []claim{{1, 9, 9, 0}, {1, 9, 9, 0}}, []int{2, 2}},
		"first ones that do not fit":           {2, []claim{{1, 0, 9, 1}, {1, 0, 9, 0}, {1, 0, 9, 1}}, []int{1, 1, 0}},
		"a large one's turn":                   {4, []claim{{4, 0, 1, 0}, {1, 0, 9, 4}}, []int{1, 0}},
		"nobody fills the room made for a large one": {4, []claim{{1, 0, 2, 1}, {4, 0, 1, 0}, {1, 0, 1, 0}, {1, 0, 9, 2}},
			[]int{1, 0, 0, 2}},
		"larger than the machine": {4, []claim{{5, 0, 1, 0}}, []int{0}},
	} {
		if diff := cmp.Diff(c.want, shares(c.total, c.claims)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestShares_NeverGiveMoreThanThereIsNorLeaveWhatFits(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		total := random.Int64N(40)
		claims := make([]claim, random.IntN(6))
		for i := range claims {
			wants := random.IntN(8)
			claims[i] = claim{1 + random.Int64N(6), random.IntN(wants + 1), wants, random.IntN(8)}
		}
		gets := shares(total, claims)
		sum, starved := int64(0), false
		for i, c := range claims {
			sum += int64(gets[i]) * c.size
			starved = starved || c.wants > 0 && gets[i] == 0
			if gets[i] < 0 || gets[i] > c.wants {
				t.Fatalf("%d of %+v: claim %d gets %v", total, claims, i, gets)
			}
		}
		if sum > total {
			t.Fatalf("%d of %+v: %v take %d", total, claims, gets, sum)
		}
		for i, c := range claims {
			if !starved && gets[i] < c.wants && c.size <= total-sum {
				t.Fatalf("%d of %+v: %v leave room for one of claim %d", total, claims, gets, i)
			}
			for j, other := range claims { // max-min: nobody has so much more that one of its instances were another's
				if !starved && gets[i] < c.wants && gets[j] > max(1, other.least) && c.size <= other.size &&
					int64(gets[i]+1)*c.size < int64(gets[j])*other.size {
					t.Fatalf("%d of %+v: %v gives claim %d what is claim %d's", total, claims, gets, j, i)
				}
			}
		}
		// What has been divided is not divided anew.
		for i := range claims {
			claims[i].holds = gets[i]
		}
		if diff := cmp.Diff(gets, shares(total, claims)); diff != "" && !starved {
			t.Fatalf("%d of %+v: dividing again (-first +again):\n%s", total, claims, diff)
		}
	}
}
