package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestHabit_LearnsHowLongConnectionsCanBeIdle(t *testing.T) {
	var h habit
	for _, step := range []struct {
		ended     time.Duration // 0 for none
		usable    time.Duration
		notUsable time.Duration
	}{
		{0, 749 * time.Millisecond, 750 * time.Millisecond},
		{5 * time.Second, 749 * time.Millisecond, 750 * time.Millisecond},
		{time.Millisecond, 749 * time.Millisecond, 750 * time.Millisecond}, // no habit: it ended for another reason
		{400 * time.Millisecond, 299 * time.Millisecond, 300 * time.Millisecond},
		{500 * time.Millisecond, 299 * time.Millisecond, 300 * time.Millisecond},
		{100 * time.Millisecond, 74 * time.Millisecond, 75 * time.Millisecond},
	} {
		if step.ended > 0 {
			h.ended(step.ended)
		}
		if !h.usable(step.usable) || h.usable(step.notUsable) {
			t.Errorf("after an end at %s: usable after %s is %t, after %s %t", step.ended,
				step.usable, h.usable(step.usable), step.notUsable, h.usable(step.notUsable))
		}
	}
}

// closesIdle is an instance that closes connections that are idle for longer than a time. It counts how often it reads
// each path, and tells when it closes.
type closesIdle struct {
	after  time.Duration
	read   sync.Map // path → *atomic.Int64
	closed chan struct{}
}

func (i *closesIdle) serve(c net.Conn) {
	defer func() {
		c.Close()
		select {
		case i.closed <- struct{}{}:
		default:
		}
	}()
	reader := bufio.NewReader(c)
	for {
		c.SetReadDeadline(time.Now().Add(i.after))
		r, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		io.Copy(io.Discard, r.Body)
		count, _ := i.read.LoadOrStore(r.URL.Path, new(atomic.Int64))
		count.(*atomic.Int64).Add(1)
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); err != nil {
			return
		}
	}
}

// race sends requests just when the instance closes the connection of the one before, and returns how many got which
// status. No request may be read twice, and one that got 200 was read.
func (i *closesIdle) race(t *testing.T, address string, clients, each int) map[int]int {
	t.Helper()
	var mu sync.Mutex
	statuses := make(map[int]int)
	var group sync.WaitGroup
	for n := range clients {
		group.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for k := range each {
				method, body := "GET", ""
				if k%2 == 1 {
					method, body = "POST", "body"
				}
				path := fmt.Sprintf("/%d/%d", n, k)
				response, err := client.Do(newRequest(t, method, address, path, body))
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, response.Body)
				response.Body.Close()
				var read int64
				if count, ok := i.read.Load(path); ok {
					read = count.(*atomic.Int64).Load()
				}
				if read > 1 || response.StatusCode == 200 && read == 0 {
					t.Errorf("%s %s got %d, and was read %d times", method, path, response.StatusCode, read)
				}
				mu.Lock()
				statuses[response.StatusCode]++
				mu.Unlock()
				time.Sleep(i.after - time.Duration((n*each+k)%40*20)*time.Microsecond)
			}
		})
	}
	group.Wait()
	return statuses
}

func TestProxy_LosesNoRequestToAnInstanceThatClosesIdleConnections(t *testing.T) {
	instance := &closesIdle{after: 600 * time.Millisecond, closed: make(chan struct{}, 1)}
	_, a, address := throughRaw(t, testRevision(), instance.serve)
	fetch(t, newRequest(t, "GET", address, "/first", ""))
	waitForLoad(t, a, 0, 0)
	<-instance.closed
	fetch(t, newRequest(t, "GET", address, "/second", "")) // finds it closed: the habit is known
	waitForLoad(t, a, 0, 0)
	const clients, each = 150, 5
	if got := instance.race(t, address, clients, each); got[200] != clients*each {
		t.Errorf("statuses are %v, want only 200", got)
	}
}

func TestProxy_NeverRepeatsARequestInARaceWithTheEndOfItsConnection(t *testing.T) {
	instance := &closesIdle{after: 2 * time.Millisecond} // shorter than what is learned
	_, _, address := throughRaw(t, testRevision(), instance.serve)
	if got := instance.race(t, address, 4, 250); got[200]+got[503] != 1000 {
		t.Errorf("statuses are %v, want only 200 and 503", got)
	} else {
		t.Logf("statuses are %v", got)
	}
}
