package server

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// lockDir makes the state directory and takes it for this server. The lock ends with the process, however it ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making state directory: %w%s", err, withoutRoot(err))
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking state directory: %w%s", err, withoutRoot(err))
	}
	if err := claim(f); err != nil {
		owner, _ := os.ReadFile(path)
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("state directory %s is used by another berth server (process %s): stop that one, or give this one another --state-dir",
				dir, strings.TrimSpace(string(owner)))
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	if err := f.Truncate(0); err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	return f, nil
}

// claim locks a file. A server that was just killed may leave processes that have a copy of its files for a moment yet.
func claim(lock *os.File) (err error) {
	const patience = time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(patience / 100) {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

// withoutRoot is what to do about an error of a server that not root has started; "" when it is another one.
func withoutRoot(err error) string {
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		return "; run berth as root: containers, networks and limits are made by root only"
	}
	return ""
}

// unlock gives the state directory back. Closing the file alone would leave it locked for as long as a process that is
// just being started has a copy of what this one had open.
func unlock(lock *os.File) error {
	return errors.Join(syscall.Flock(int(lock.Fd()), syscall.LOCK_UN), lock.Close())
}

// listen takes an address for one of the servers.
func listen(what, flag, address string) (net.Listener, error) {
	network := "tcp"
	if host, _, err := net.SplitHostPort(address); err == nil && net.ParseIP(host).To4() != nil {
		network = "tcp4" // 0.0.0.0 says IPv4; plain "tcp" would take IPv6 as well
	}
	l, err := net.Listen(network, address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listening for the %s: address %s is in use by another process: choose another with %s, or stop that process", what, address, flag)
	case err != nil:
		return nil, fmt.Errorf("listening for the %s on %s (%s): %w", what, address, flag, err)
	}
	return l, nil
}

// reachable is an address that a client on this machine can dial, for one that may be a wildcard.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		if ip.To4() != nil {
			return net.JoinHostPort("127.0.0.1", port)
		}
		return net.JoinHostPort("::1", port)
	}
	return address
}

// ensureToken reads the API token, or makes one.
func ensureToken(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err == nil {
		token := strings.TrimSpace(string(data))
		if len(token) < 16 {
			return "", fmt.Errorf("reading API token %s: it has %d characters, at least 16 are needed: remove the file to have one made", path, len(token))
		}
		return token, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("reading API token: %w", err)
	}
	token := rand.Text()
	return token, writeFile(path, token+"\n")
}

// writeKubeconfig writes what kubectl, kn and berth's own commands need to reach the API.
func writeKubeconfig(path, server string, trusted []byte, token string) error {
	return writeFile(path, fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: berth
clusters:
- name: berth
  cluster:
    server: %q
    certificate-authority-data: %s
users:
- name: admin
  user: {token: %q}
contexts:
- name: berth
  context: {cluster: berth, user: admin, namespace: default}
`, server, base64.StdEncoding.EncodeToString(trusted), token))
}

// writeFile replaces a file that only its owner may read, all or nothing.
func writeFile(path, content string) error {
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	_, err = f.WriteString(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
