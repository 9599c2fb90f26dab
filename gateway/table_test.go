package gateway

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
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
	if n := testing.AllocsPerRun(1000, func() {
		if table.lookup("h500.test:8080").choose() != a {
			t.Fatal("not found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
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

func BenchmarkTable_Lookup(b *testing.B) {
	for _, hosts := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("%d hosts", hosts), func(b *testing.B) {
			var table table
			a := NewActivator(testRevision())
			for i := range hosts {
				if err := table.set(fmt.Sprint(i), map[string]*Route{fmt.Sprintf("service-%d.default.localhost", i): toActivator(a)}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if table.lookup("service-0.default.localhost:8080") == nil {
						b.Fatal("not found")
					}
				}
			})
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
