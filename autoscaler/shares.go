package autoscaler

import "container/heap"

// claim is what one revision wants of the memory that a machine has for instances.
type claim struct {
	size  int64 // bytes that each of its instances takes
	least int   // instances that it is promised: its least number
	wants int   // instances that it has work for, the least number among them
	holds int   // instances that it has
}

// shares divides memory between revisions: it says how many instances each may have. The sum of what they take is
// within total. claims are in the order of their turn.
//
//   - Everyone who wants any gets a first instance before anyone gets a second, in the order of the claims. When the
//     next one's does not fit, nobody gets what would fit in its stead: those after it keep what they have while there
//     is room, and no one grows, so that room is made and not filled again.
//   - Then the least numbers, and then all that is wanted, are filled by max-min fairness: the next instance goes to the
//     revision that has the least memory with it. Among equals it goes to the one that has the instance already, so
//     that none is taken only to be given to another.
func shares(total int64, claims []claim) []int {
	gets := make([]int, len(claims))
	left, full := total, false
	for i, c := range claims {
		switch {
		case c.wants <= 0 || full && c.holds == 0:
		case c.size <= left:
			gets[i] = 1
			left -= c.size
		default:
			full = true
		}
	}
	upTo := func(most func(claim) int) {
		q := &shareQueue{claims: claims, gets: gets}
		for i, c := range claims {
			if gets[i] > 0 && gets[i] < most(c) {
				q.order = append(q.order, i)
			}
		}
		heap.Init(q)
		for len(q.order) > 0 {
			i := q.order[0]
			c := claims[i]
			if c.size <= left {
				gets[i]++
				left -= c.size
			}
			if c.size > left || gets[i] >= most(c) {
				heap.Pop(q)
			} else {
				heap.Fix(q, 0)
			}
		}
	}
	bound := func(n int, c claim) int {
		if full {
			return min(n, c.holds)
		}
		return n
	}
	upTo(func(c claim) int { return bound(min(c.least, c.wants), c) })
	upTo(func(c claim) int { return bound(c.wants, c) })
	return gets
}

// shareQueue has the claims that may get another instance, the one whose turn it is first.
type shareQueue struct {
	claims []claim
	gets   []int
	order  []int // indexes of claims
}

func (q *shareQueue) Len() int      { return len(q.order) }
func (q *shareQueue) Swap(i, j int) { q.order[i], q.order[j] = q.order[j], q.order[i] }
func (q *shareQueue) Push(any)      {} // nothing is added on the way
func (q *shareQueue) Pop() any {
	q.order = q.order[:len(q.order)-1]
	return nil
}

func (q *shareQueue) Less(i, j int) bool {
	i, j = q.order[i], q.order[j]
	a, b := q.claims[i], q.claims[j]
	with, other := int64(q.gets[i]+1)*a.size, int64(q.gets[j]+1)*b.size
	if with != other {
		return with < other
	}
	if has, had := q.gets[i] < a.holds, q.gets[j] < b.holds; has != had {
		return has
	}
	return i < j
}
