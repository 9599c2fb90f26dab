package gateway

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAffinity_IsReadFromACookieHeader(t *testing.T) {
	want := affinity{markOf("default", "hello-00001"), markOf("default", "hello-00001-a")}
	value := want.value()
	for cookies, want := range map[string]affinity{
		"BERTH-AFFINITY=" + value:                                     want,
		"a=b; BERTH-AFFINITY=" + value + "; c=d":                      want,
		"a=b;BERTH-AFFINITY=" + value + " ;c=d":                       want,
		"a=b,c;\tBERTH-AFFINITY=" + value:                             want,
		"BERTH-AFFINITY=" + value + "; BERTH-AFFINITY=x":              want, // the first counts
		"BERTH-AFFINITY=x; BERTH-AFFINITY=" + value:                   {},
		"BERTH-AFFINITY=" + value[:21]:                                {},
		"BERTH-AFFINITY=" + value + "A":                               {},
		"BERTH-AFFINITY=" + strings.Repeat("=", affinityLength):       {},
		"BERTH-AFFINITY=" + strings.Repeat("\n", affinityLength):      {},
		"BERTH-AFFINITY=\"" + value[:20] + "\"":                       {},
		"BERTH-AFFINITY=":                                             {},
		"BERTH-AFFINITY":                                              {},
		"berth-affinity=" + value:                                     {},
		"XBERTH-AFFINITY=" + value:                                    {},
		"":                                                            {},
		";;;":                                                         {},
		"BERTH-AFFINITY=" + strings.Repeat("x", 1<<16) + "; " + value: {},
	} {
		if got := affinityIn(cookies); got != want {
			t.Errorf("%.100q: got %+v, want %+v", cookies, got, want)
		}
	}
	if strings.Contains(value, "hello") || len(value) != affinityLength {
		t.Errorf("the value is %q", value)
	}
}

func FuzzAffinityIn(f *testing.F) {
	f.Add("a=b; BERTH-AFFINITY=" + affinity{1, 2}.value())
	f.Fuzz(func(t *testing.T, cookies string) {
		if found := affinityIn(cookies); found != (affinity{}) && !strings.Contains(cookies, affinityCookie+"=") {
			t.Errorf("%q: found %+v", cookies, found)
		}
	})
}

func TestAffinity_CookieIsSecureUnderHTTPS(t *testing.T) {
	a := affinity{1, 2}
	want := "BERTH-AFFINITY=AAAAAAAAAAEAAAAAAAAAAg; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax"
	if got := a.setCookie("http"); got != want {
		t.Errorf("got %q", got)
	}
	if got := a.setCookie("https"); got != want+"; Secure" {
		t.Errorf("got %q", got)
	}
	if cookie, err := http.ParseSetCookie(a.setCookie("https")); err != nil || time.Duration(cookie.MaxAge)*time.Second != affinityAge {
		t.Errorf("got %+v, %v", cookie, err)
	}
}

// affineGateway is a gateway whose host leads to two revisions with affinity, half and half, of two instances each.
func affineGateway(t *testing.T, config Config, concurrency int) (blue, green *Activator, address string) {
	t.Helper()
	revision := func(name string) *Activator {
		r := testRevision()
		r.Name, r.Affinity, r.Concurrency = name, true, concurrency
		a := NewActivator(r)
		for _, id := range []string{name + "-1", name + "-2"} {
			a.Add(serveInstance(t, id, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Cookie", r.Header.Get("Cookie"))
				io.WriteString(w, id)
			}))
		}
		return a
	}
	blue, green = revision("blue"), revision("green")
	g, address := startGateway(t, config, blue)
	if err := g.SetHosts("default/hello", map[string]*Route{"hello.test": {Splits: []Split{{50, blue}, {50, green}}}}); err != nil {
		t.Fatal(err)
	}
	return blue, green, address
}

// visit sends a request with a cookie, and returns where it was served and the cookie that the answer set.
func visit(t *testing.T, address, cookie string) (instance, set string) {
	t.Helper()
	r := newRequest(t, "GET", address, "/", "")
	if cookie != "" {
		r.Header.Set("Cookie", cookie)
	}
	response, body := fetch(t, r)
	if response.StatusCode != http.StatusOK {
		t.Fatalf("got %d %q", response.StatusCode, body)
	}
	if got := response.Header.Get("X-Cookie"); got != cookie {
		t.Errorf("the instance got the cookie %q, want %q", got, cookie)
	}
	set, _, _ = strings.Cut(response.Header.Get("Set-Cookie"), ";")
	return body, set
}

func TestGateway_BringsAClientBackToItsInstance(t *testing.T) {
	_, _, address := affineGateway(t, Config{}, 0)
	seen := map[string]int{}
	for range 40 { // clients
		first, cookie := visit(t, address, "")
		if cookie == "" {
			t.Fatal("no cookie was set")
		}
		seen[first]++
		for range 5 {
			if again, set := visit(t, address, cookie); again != first || set != "" {
				t.Fatalf("served by %s after %s, cookie %q", again, first, set)
			}
		}
	}
	revisions := 0
	for _, name := range []string{"blue", "green"} {
		if seen[name+"-1"]+seen[name+"-2"] > 0 {
			revisions++
		}
	}
	if revisions != 2 {
		t.Errorf("clients without a cookie went to %v", seen)
	}
}

func TestGateway_GivesAClientAnotherInstanceWhenItsOwnTakesNone(t *testing.T) {
	blue, _, address := affineGateway(t, Config{}, 1)
	cookie := affinityCookie + "=" + affinity{markOf("default", "blue"), markOf("default", "blue-1")}.value()
	if at, set := visit(t, address, cookie); at != "blue-1" || set != "" {
		t.Fatalf("served by %s, cookie %q", at, set)
	}
	waitForLoad(t, blue, 0, 0)

	busy := blue.claimMarked(markOf("default", "blue-1"), time.Now())
	if busy == nil || busy.id != "blue-1" {
		t.Fatalf("claimed %+v", busy)
	}
	other := affinityCookie + "=" + affinity{markOf("default", "blue"), markOf("default", "blue-2")}.value()
	if at, set := visit(t, address, cookie); at != "blue-2" || set != other {
		t.Errorf("served by %s, cookie %q; want the revision's other instance, %q", at, set, other)
	}
	waitForLoad(t, blue, 1, 0)
	blue.release(busy, time.Now())

	blue.Remove(busy.instance)
	if at, set := visit(t, address, cookie); at != "blue-2" || set != other {
		t.Errorf("served by %s, cookie %q; want the revision's other instance, %q", at, set, other)
	}
	waitForLoad(t, blue, 0, 0)
	if len(blue.marked) != 1 {
		t.Errorf("kept are %v", blue.marked)
	}
}

func TestGateway_TakesACookieOfElsewhereForNone(t *testing.T) {
	blue, green, address := affineGateway(t, Config{}, 0)
	gone := affinity{markOf("default", "red"), markOf("default", "red-1")}.value()
	for _, value := range []string{gone, "nonsense", affinity{}.value(), affinity{0, markOf("default", "blue-1")}.value()} {
		if _, set := visit(t, address, affinityCookie+"="+value); set == "" || set == affinityCookie+"="+value {
			t.Errorf("%q: the answer set %q", value, set)
		}
	}
	waitForLoad(t, blue, 0, 0)
	waitForLoad(t, green, 0, 0)
}

func TestGateway_SetsNoCookieWithoutAffinity(t *testing.T) {
	_, address := through(t, testRevision(), func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "mine", Value: "1"})
	})
	r := newRequest(t, "GET", address, "/", "")
	r.Header.Set("Cookie", affinityCookie+"="+affinity{markOf("default", "hello-00001"), 1}.value())
	response, _ := fetch(t, r)
	if diff := cmp.Diff([]string{"mine=1"}, response.Header["Set-Cookie"]); diff != "" {
		t.Errorf("Set-Cookie (-want +got):\n%s", diff)
	}
}

func TestGateway_KeepsTheInstancesCookiesBesideItsOwn(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			revision := testRevision()
			revision.Affinity, revision.HTTP2 = true, http2
			loopback := netip.MustParsePrefix("127.0.0.0/8")
			_, address := throughConfig(t, Config{TrustForwarded: []netip.Prefix{loopback}, PrivateCookies: true}, revision,
				func(w http.ResponseWriter, r *http.Request) { w.Header().Add("Set-Cookie", "mine=1") })
			r := newRequest(t, "GET", address, "/", "")
			r.Header.Set("X-Forwarded-Proto", "https")
			response, _ := fetch(t, r)
			want := []string{"mine=1", affinity{markOf("default", "hello-00001"), markOf("default", "hello-00001-a")}.setCookie("https")}
			if diff := cmp.Diff(want, response.Header["Set-Cookie"]); diff != "" {
				t.Errorf("Set-Cookie (-want +got):\n%s", diff)
			}
			if got := response.Header.Get("Cache-Control"); got != "private" {
				t.Errorf("Cache-Control is %q", got)
			}
		})
	}
}

func TestGateway_SetsTheCookieWithATunnelToo(t *testing.T) {
	revision := testRevision()
	revision.Affinity = true
	_, _, address := throughRaw(t, revision, rawResponse("HTTP/1.1 101 Switching Protocols\r\nConnection: close, Upgrade\r\nUpgrade: x\r\n\r\n"))
	got := exchangeRaw(t, address, "GET / HTTP/1.1\r\nHost: hello.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 101 ") || strings.Count(got, "Set-Cookie: "+affinityCookie+"=") != 1 {
		t.Errorf("got %q", got)
	}
}

func TestBalancer_KeepsItsInvariantWhenTheInstanceIsChosenForIt(t *testing.T) {
	b := balancer{concurrency: 3}
	members := map[string]*member{}
	for i := range 3 {
		id := fmt.Sprint("i", i)
		members[id] = &member{id: id, instance: idleInstance(id)}
		b.add(members[id])
	}
	for range 3 {
		if !b.takeOn(members["i1"]) {
			t.Fatal("i1 had a free slot")
		}
	}
	if b.takeOn(members["i1"]) {
		t.Error("i1 had no free slot")
	}
	var order []string
	for m := b.take(); m != nil; m = b.take() {
		order = append(order, m.id)
		if m.inFlight > 3 || len(order) > 6 {
			t.Fatalf("too many requests: %v", order)
		}
	}
	if len(order) != 6 || members["i0"].inFlight != 3 || members["i2"].inFlight != 3 {
		t.Errorf("the other instances took %v", order)
	}
	b.remove(members["i1"])
	if b.takeOn(members["i1"]) {
		t.Error("i1 is not listed")
	}
}
