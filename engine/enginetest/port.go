package enginetest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/engine"
)

// ask sends a request to a port of an instance and returns the answer, or why there is none.
func ask(t *testing.T, i engine.Instance, port int) (string, error) {
	t.Helper()
	conn, err := i.DialPort(t.Context(), port)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

func portsOfLoopbackAreReached(t *testing.T, s *Suite) {
	i := s.Start(t, s.WithSidecar(func(c *engine.Container) {
		c.StartupProbe = &engine.Probe{Exec: &engine.ExecProbe{Command: []string{"/bin/program", "ask", "GET", fmt.Sprintf("http://127.0.0.1:%d/", helperPort)}}}
	}, "listen", fmt.Sprint("127.0.0.1:", helperPort)))
	for _, p := range []int{port, helperPort} {
		if answer, err := ask(t, i, p); err != nil || !strings.HasSuffix(answer, "hello\n") {
			t.Errorf("port %d answers %q: %v", p, answer, err)
		}
	}
	if _, err := ask(t, i, 1); !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), i.ID()) {
		t.Errorf("dialing a port where nothing listens: %v", err)
	}
	// Two instances are two networks.
	other := s.Start(t, nil)
	if _, err := ask(t, other, helperPort); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialing another instance's port: %v", err)
	}
}

func portsEndWithTheInstance(t *testing.T, s *Suite) {
	i := s.Start(t, nil)
	conn, err := i.DialPort(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	i.Stop(0)
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("reading after the end: %v", err)
	}
	if conn, err := i.DialPort(t.Context(), port); err == nil {
		conn.Close()
		t.Error("a port of an instance that was stopped was dialed")
	}
}
