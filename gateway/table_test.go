package gateway

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"
)

func TestNormalizeHost_LeavesTheName(t *testing.T) {
	for _, test := range []struct {
		in, want string
		ok       bool
	}{
		{"hello.test", "hello.test", true},
		{"Hello.TEST:8080", "hello.test", true},
		{"hello.test.", "hello.test", true},
		{"hello.test.:80", "hello.test", true},
		{"hello.test:", "hello.test", true},
		{"hello.test:80 HTTP/1.1", "", false},
		{"hello.test:x", "", false},
		{"[::1]:80", "[::1]", true},
		{"[::1]", "[::1]", true},
		{"[::1", "", false},
		{"", "", true},
	} {
		if got, ok := normalizeHost(test.in); got != test.want || ok != test.ok {
			t.Errorf("normalizeHost(%q) = %q, %t; want %q, %t", test.in, got, ok, test.want, test.ok)
		}
	}
}

func toActivator(a *Activator) *Route { return &Route{Splits: []Split{{Percent: 100, Activator: a}}} }

func TestTable_ReplacesWhatAnOwnerPublishes(t *testing.T) {
	var table table
	a, b := NewActivator(testRevision()), NewActivator(testRevision())
	steps := []map[string]*Route{
		{"one.test": toActivator(a), "two.test": toActivator(a)},
		{"two.test": toActivator(b), "three.test": toActivator(b)},
		nil,
		{"one.test": toActivator(b)},
	}
	for i, hosts := range steps {
		if err := table.set("default/hello", hosts); err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"one.test", "two.test", "three.test"} {
			got := table.lookup(host)
			if want := hosts[host]; (got != nil) != (want != nil) || got != nil && got.choose() != want.Splits[0].Activator {
				t.Errorf("step %d: lookup(%q) = %+v", i, host, got)
			}
		}
	}
}

func TestTable_RefusesAHostOfAnotherOwner(t *testing.T) {
	var table table
	a := NewActivator(testRevision())
	if err := table.set("default/hello", map[string]*Route{"hello.test": toActivator(a)}); err != nil {
		t.Fatal(err)
	}
	err := table.set("other/hello", map[string]*Route{"mine.test": toActivator(a), "HELLO.test": toActivator(a)})
	if !errors.Is(err, ErrHostTaken) {
		t.Errorf("got %v, want %v", err, ErrHostTaken)
	}
	if table.lookup("mine.test") != nil {
		t.Error("a part of the refused change was made")
	}
	if err := table.set("default/hello", nil); err != nil {
		t.Fatal(err)
	}
	if err := table.set("other/hello", map[string]*Route{"hello.test": toActivator(a)}); err != nil {
		t.Errorf("a host that was given up cannot be taken: %v", err)
	}
}

func TestTable_RefusesRoutesThatLeadNowhere(t *testing.T) {
	a := NewActivator(testRevision())
	for name, route := range map[string]*Route{
		"no route":     nil,
		"no splits":    {},
		"no activator": {Splits: []Split{{Percent: 100}}},
		"all zero":     {Splits: []Split{{Activator: a}, {Activator: a}}},
		"negative":     {Splits: []Split{{Percent: -1, Activator: a}, {Percent: 101, Activator: a}}},
	} {
		var table table
		if err := table.set("default/hello", map[string]*Route{"hello.test": route}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestRoute_SharesRequestsByWeight(t *testing.T) {
	a, b, none := NewActivator(testRevision()), NewActivator(testRevision()), NewActivator(testRevision())
	made, err := newRoute(&Route{Splits: []Split{{Percent: 0, Activator: none}, {Percent: 30, Activator: a}, {Percent: 70, Activator: b}}})
	if err != nil {
		t.Fatal(err)
	}
	const n = 100_000
	counts := make(map[*Activator]int)
	for range n {
		counts[made.choose()]++
	}
	deviation := 5 * math.Sqrt(n*0.3*0.7) // five standard deviations
	if got := float64(counts[a]); counts[none] != 0 || math.Abs(got-0.3*n) > deviation {
		t.Errorf("30 %% got %v of %d requests, 0 %% got %d", got, n, counts[none])
	}
}

func TestTable_FindsAHostWithoutAllocating(t *testing.T) {
	var table table
	a := NewActivator(testRevision())
	for i := range 1000 {
		if err := table.set(fmt.Sprint(i), map[string]*Route{fmt.Sprintf("h%d.test", i): toActivator(a)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, host := range []string{"h500.test", "h500.test:8080", "H500.Test.:80"} {
		view := []byte(host)
		if n := testing.AllocsPerRun(1000, func() {
			if table.lookup(unsafe.String(&view[0], len(view))).choose() != a {
				t.Fatal("not found")
			}
		}); n != 0 {
			t.Errorf("%v allocations for %q", n, host)
		}
	}
}

func TestTable_ReadersSeeAllHostsOfAnOwnerChangeAtOnce(t *testing.T) {
	var table table
	a, b := NewActivator(testRevision()), NewActivator(testRevision())
	publish := func(to *Activator) {
		if err := table.set("default/hello", map[string]*Route{"one.test": toActivator(to), "two.test": toActivator(to)}); err != nil {
			t.Error(err)
		}
	}
	publish(a)
	// The writer goes from a to b once: who has seen b on one host must not see a on the other.
	var group sync.WaitGroup
	for range 200 {
		publish(a)
		group.Go(func() { publish(b) })
		group.Go(func() {
			first := table.lookup("one.test").choose()
			if second := table.lookup("two.test").choose(); first == b && second == a {
				t.Error("one host had changed, the other had not")
			}
		})
		group.Wait()
	}
}

// manyHosts is a table of so many owners with one host each.
func manyHosts(t testing.TB, n int) (*table, []string) {
	t.Helper()
	var made table
	a := NewActivator(testRevision())
	hosts := make([]string, n)
	for i := range hosts {
		hosts[i] = fmt.Sprintf("service-%06d.default.localhost", i)
		if err := made.set(fmt.Sprint(i), map[string]*Route{hosts[i]: toActivator(a)}); err != nil {
			t.Fatal(err)
		}
	}
	return &made, hosts
}

func TestTable_LooksAtAsFewSlotsAmongManyHosts(t *testing.T) {
	for _, n := range []int{1, 10, 1000, 100_000} {
		made, hosts := manyHosts(t, n)
		looks := 0
		s := made.hosts.slots.Load()
		for _, host := range hosts {
			for i := maphash.String(s.seed, host); ; i++ {
				looks++
				if s.slot(i).entry.Load().host == host {
					break
				}
			}
		}
		// At most half of the slots are used: 1.5 looks are expected of linear probing then.
		if mean := float64(looks) / float64(n); mean > 2 && n >= 1000 || looks > 5*n {
			t.Errorf("%.2f slots are looked at for a host among %d", mean, n)
		}
		if len(s.at) > 8*n+leastSlots {
			t.Errorf("%d slots for %d hosts", len(s.at), n)
		}
	}
}

func TestTable_AChangeCostsTheHostsOfItsOwner(t *testing.T) {
	allocated := func(n int) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		manyHosts(t, n)
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	// What is copied is allocated: ten times the services must not cost a hundred times as much.
	if few, many := allocated(5_000), allocated(50_000); many > 20*few {
		t.Errorf("publishing 5,000 services allocates %d bytes, 50,000 %d", few, many)
	}
}

func TestTable_FindsHostsThatComeAndGo(t *testing.T) {
	var made table
	activators := []*Activator{nil, NewActivator(testRevision()), NewActivator(testRevision())}
	random := rand.New(rand.NewPCG(1, 2))
	const owners, hosts = 7, 12
	var want [owners][hosts]*Activator
	for range 5000 {
		o := random.IntN(owners)
		published := make(map[string]*Route)
		for h := range hosts {
			want[o][h] = activators[random.IntN(len(activators))]
			if a := want[o][h]; a != nil {
				published[fmt.Sprintf("h%d.o%d.test", h, o)] = toActivator(a)
			}
		}
		if err := made.set(fmt.Sprint(o), published); err != nil {
			t.Fatal(err)
		}
		for o := range owners {
			for h := range hosts {
				got := made.lookup(fmt.Sprintf("h%d.o%d.test:80", h, o))
				if (got == nil) != (want[o][h] == nil) || got != nil && got.choose() != want[o][h] {
					t.Fatalf("lookup of host %d of owner %d is %+v", h, o, got)
				}
			}
		}
	}
	for o := range owners {
		if err := made.set(fmt.Sprint(o), nil); err != nil {
			t.Fatal(err)
		}
	}
	if made.hosts.live != 0 || len(made.owners) != 0 {
		t.Errorf("%d hosts and %d owners are left", made.hosts.live, len(made.owners))
	}
}

func TestTable_ReadersNeverMissAHostThatStays(t *testing.T) {
	var made table
	a, b := NewActivator(testRevision()), NewActivator(testRevision())
	set := func(name string, published map[string]*Route) {
		if err := made.set(name, published); err != nil {
			t.Error(err)
		}
	}
	for i := range 8 {
		set("stays", map[string]*Route{"stays.test": toActivator(a)})
		done := make(chan struct{})
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					if got := made.lookup("stays.test"); got == nil || got.choose() != a {
						t.Errorf("got %+v", got)
						return
					}
					if got := made.lookup("moves.test"); got != nil && got.choose() != b {
						t.Errorf("a place that was reused leads to %+v", got)
						return
					}
				}
			})
		}
		for k := range 2000 { // others come and go, in the same slots and in new ones, and in the same owner
			name := fmt.Sprintf("o%d-%d", i, k)
			set(name, map[string]*Route{name + ".test": toActivator(b)})
			set("stays", map[string]*Route{"stays.test": toActivator(a), "moves.test": toActivator(b)})
			set("stays", map[string]*Route{"stays.test": toActivator(a), "other.test": toActivator(a)})
			if k%3 > 0 {
				set(name, nil)
			}
		}
		close(done)
		group.Wait()
	}
}

func FuzzTable_LookupAgreesWithNormalizeHost(f *testing.F) {
	for _, host := range []string{"Hello.test:80", "hello.test.", "[::1]:80", "[::1].", "::1", "hello.test:", ".", ":", "a..:1", "[a]:1:2"} {
		f.Add(host)
	}
	f.Fuzz(func(t *testing.T, host string) {
		var made table
		clean, ok := normalizeHost(host)
		if !ok || clean == "" || len(clean) > maxHostLength || strings.ToLower(clean) != clean || !isASCII(host) {
			if got := made.lookup(host); got != nil {
				t.Errorf("lookup(%q) in an empty table is %+v", host, got)
			}
			// What is not a host must not be found as the one that it resembles.
			if plain := trimHost(host); !ok && plain != "" {
				if name, fine := normalizeHost(plain); fine && name == plain {
					made.set("o", map[string]*Route{plain: {Unready: "x"}})
					if made.lookup(host) != nil {
						t.Errorf("lookup(%q) finds %q", host, plain)
					}
				}
			}
			return
		}
		if err := made.set("o", map[string]*Route{clean: {Unready: "x"}}); err != nil {
			t.Skip(err)
		}
		if again, fine := normalizeHost(clean); !fine || again != clean {
			t.Skip("published as another host")
		}
		if made.lookup(host) == nil {
			t.Errorf("lookup(%q) does not find %q", host, clean)
		}
	})
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// BenchmarkLookup finds the same few hosts again and again. "random" finds another one each time: that costs what the
// processor's caches make of it, in any table.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		made, hosts := manyHosts(b, n)
		order := rand.New(rand.NewPCG(1, 2)).Perm(n)
		for _, distinct := range []int{10, n} {
			name := fmt.Sprint(n)
			if distinct > 10 {
				name += "random"
			}
			asked := make([]string, distinct)
			for i := range asked {
				asked[i] = hosts[order[i]] + ":8080"
			}
			b.Run(name, func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if made.lookup(asked[i]) == nil {
						b.Fatal("not found")
					}
					if i++; i == len(asked) {
						i = 0
					}
				}
			})
			if distinct == n {
				break
			}
		}
	}
}

func BenchmarkTable_Set(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			made, hosts := manyHosts(b, n)
			routes := map[string]*Route{hosts[0]: toActivator(NewActivator(testRevision()))}
			b.ReportAllocs()
			for b.Loop() {
				if err := made.set("0", routes); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestTable_FollowingHostGoesWhereTheOtherOneDoes(t *testing.T) {
	var table table
	a, b := NewActivator(testRevision()), NewActivator(testRevision())
	set := func(owner string, hosts map[string]*Route) {
		t.Helper()
		if err := table.set(owner, hosts); err != nil {
			t.Fatal(err)
		}
	}
	set("a mapping", map[string]*Route{"shop.test": {Follow: "Hello.test:8080"}})
	if got := table.lookup("shop.test"); got != nil {
		t.Errorf("a host that follows none has the route %+v", got)
	}
	for _, activator := range []*Activator{a, b} {
		set("default/hello", map[string]*Route{"hello.test": toActivator(activator)})
		if got := table.lookup("shop.test"); got == nil || got.choose() != activator {
			t.Errorf("got %+v", got)
		}
	}
	set("default/hello", map[string]*Route{"hello.test": {Unready: "not yet"}})
	if got := table.lookup("SHOP.test:80"); got == nil || got.unready != "not yet" {
		t.Errorf("got %+v", got)
	}

	set("a circle", map[string]*Route{"one.test": {Follow: "two.test"}, "two.test": {Follow: "one.test"}})
	if got := table.lookup("one.test"); got != nil {
		t.Errorf("a circle has the route %+v", got)
	}
	for _, route := range []*Route{{Follow: "hello.test", Unready: "x"}, {Follow: "hello.test:x"}, {Follow: "hello.test", Splits: toActivator(a).Splits}} {
		if err := table.set("wrong", map[string]*Route{"wrong.test": route}); err == nil {
			t.Errorf("%+v was published", route)
		}
	}
}
