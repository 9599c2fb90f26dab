package node

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berth-run/berth/engine"
)

const (
	// segments is how many files a revision's log is kept in: when it is full, the oldest goes.
	segments = 4
	// LeastLogKeep is the least that Config.LogKeep can be: every file must take the longest line, with what comes
	// before its text.
	LeastLogKeep = segments * 2 * maxLine
	// noService is the directory of revisions without a service; no service can have this name.
	noService = "_"
)

// logs keeps what containers write, in files below one directory: NAMESPACE/SERVICE/REVISION/NUMBER.log, where
// the highest number is the newest. A line is "TIME STREAM SOURCE TEXT", where the source is INSTANCE/CONTAINER.
type logs struct {
	dir    string
	keep   int64 // bytes for each revision
	logger *slog.Logger

	mu        sync.Mutex
	inUse     map[logName]*revisionLog
	followers map[chan struct{}]engine.LogQuery
}

// logName names the log of a revision.
type logName struct{ namespace, service, revision string }

func (n logName) dir(root string) string {
	service := n.service
	if service == "" {
		service = noService
	}
	return filepath.Join(root, n.namespace, service, n.revision)
}

// source is who writes a line.
type source struct {
	instance  string
	container string // "" for the platform, about the whole instance
}

// String is the source as it stands in a line.
func (s source) String() string {
	if s.container == "" {
		return s.instance
	}
	return s.instance + "/" + s.container
}

// matches reports whether a query selects the revision.
func (n logName) matches(q engine.LogQuery) bool {
	return (q.Namespace == "" || q.Namespace == n.namespace) &&
		(q.Service == "" || q.Service == n.service) &&
		(q.Revision == "" || q.Revision == n.revision)
}

func openLogs(dir string, keep int64, logger *slog.Logger) (*logs, error) {
	if keep < LeastLogKeep {
		return nil, fmt.Errorf("--log-keep=%d is too little to keep the log of a revision in: want at least %d bytes (%dKi)", keep, LeastLogKeep, LeastLogKeep>>10)
	}
	return &logs{dir: dir, keep: keep, logger: logger, inUse: map[logName]*revisionLog{}, followers: map[chan struct{}]engine.LogQuery{}}, nil
}

// revisionLog is the log of a revision that instances write to.
type revisionLog struct {
	logs *logs
	name logName
	uses int // guarded by logs.mu

	mu      sync.Mutex
	file    *os.File // the newest; nil until the first line, and after an error
	number  int
	size    int64
	last    time.Time
	failing bool // the last write failed, and that was said
}

// use returns the log of a revision, to be given back with done.
func (l *logs) use(name logName) *revisionLog {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.inUse[name]
	if r == nil {
		r = &revisionLog{logs: l, name: name}
		l.inUse[name] = r
	}
	r.uses++
	return r
}

func (l *logs) done(r *revisionLog) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.uses--; r.uses == 0 {
		delete(l.inUse, r.name)
		r.mu.Lock()
		r.closeFile()
		r.mu.Unlock()
	}
}

// write appends lines. It does not wait for the disk. When it cannot write, the lines are lost, and that is
// logged once: a full disk must not stop the containers.
func (r *revisionLog) write(from source, stream string, lines []string) {
	r.mu.Lock()
	err := r.append(from, stream, lines)
	if err != nil {
		r.closeFile()
	}
	tell := err != nil && !r.failing
	r.failing = err != nil
	r.mu.Unlock()
	if tell {
		r.logs.logger.Error("writing a revision's log; its lines are lost until this is mended", "revision", r.name.revision, "error", err)
	}
	r.logs.wake(r.name)
}

func (r *revisionLog) append(from source, stream string, lines []string) error {
	if r.file == nil {
		if err := r.openFile(); err != nil {
			return err
		}
	}
	now := time.Now().UTC()
	if now.Before(r.last) {
		now = r.last // the lines of a revision are in order, whatever the clock does
	}
	r.last = now
	by := from.String()
	var text []byte
	for _, line := range lines {
		begin := len(text)
		text = now.AppendFormat(text, time.RFC3339Nano)
		text = append(text, ' ')
		text = append(text, stream...)
		text = append(text, ' ')
		text = append(text, by...)
		text = append(text, ' ')
		text = append(text, line...)
		text = append(text, '\n')
		if r.size+int64(len(text)) > r.logs.keep/segments {
			if err := r.writeText(text[:begin]); err != nil {
				return err
			}
			if err := r.rotate(); err != nil {
				return err
			}
			text = append(text[:0], text[begin:]...)
		}
	}
	return r.writeText(text)
}

func (r *revisionLog) writeText(text []byte) error {
	n, err := r.file.Write(text)
	r.size += int64(n)
	if err != nil {
		return fmt.Errorf("writing to %q: %w", r.file.Name(), err)
	}
	return nil
}

// openFile opens the newest file, or the one after it when that does not end in a whole line.
func (r *revisionLog) openFile() error {
	dir := r.name.dir(r.logs.dir)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("making the log's directory: %w", err)
	}
	numbers, err := logFiles(dir)
	if err != nil {
		return err
	}
	r.number = 1
	if len(numbers) > 0 {
		r.number = numbers[len(numbers)-1]
		if !endsInNewline(logFile(dir, r.number)) {
			r.number++
		}
	}
	return r.openNumber()
}

func (r *revisionLog) openNumber() error {
	file, err := os.OpenFile(logFile(r.name.dir(r.logs.dir), r.number), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return fmt.Errorf("opening the log: %w", err)
	}
	r.file, r.size = file, info.Size()
	return nil
}

// rotate begins a new file, for which it removes the oldest.
func (r *revisionLog) rotate() error {
	r.closeFile()
	dir := r.name.dir(r.logs.dir)
	numbers, err := logFiles(dir)
	if err != nil {
		return err
	}
	for len(numbers) >= segments {
		if err := os.Remove(logFile(dir, numbers[0])); err != nil {
			return fmt.Errorf("removing the oldest part of the log: %w", err)
		}
		numbers = numbers[1:]
	}
	r.number++
	return r.openNumber()
}

func (r *revisionLog) closeFile() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// follow registers a reader of a query's lines. The channel gets a value when there are new ones.
func (l *logs) follow(q engine.LogQuery) chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	wake := make(chan struct{}, 1)
	l.followers[wake] = q
	return wake
}

func (l *logs) unfollow(wake chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.followers, wake)
}

func (l *logs) wake(name logName) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for wake, q := range l.followers {
		if name.matches(q) {
			select {
			case wake <- struct{}{}:
			default: // it has not looked since the last
			}
		}
	}
}

// remove removes the log of a revision; revision "" means those of all revisions of the service.
func (l *logs) remove(namespace, service, revision string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, r := range l.inUse {
		if name.namespace == namespace && name.service == service && (revision == "" || name.revision == revision) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.closeFile() // what comes yet begins a new one
		}
	}
	dir := logName{namespace, service, revision}.dir(l.dir)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the logs of service %q: %w", service, err)
	}
	for dir = filepath.Dir(dir); dir != l.dir; dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil {
			break // others have logs in it
		}
	}
	return nil
}

// names lists the revisions that have a log and that a query selects.
func (l *logs) names(q engine.LogQuery) ([]logName, error) {
	namespaces, err := directories(l.dir, q.Namespace)
	if err != nil {
		return nil, err
	}
	var names []logName
	for _, namespace := range namespaces {
		services, err := directories(filepath.Join(l.dir, namespace), q.Service)
		if err != nil {
			return nil, err
		}
		for _, service := range services {
			revisions, err := directories(filepath.Join(l.dir, namespace, service), q.Revision)
			if err != nil {
				return nil, err
			}
			if service == noService {
				service = ""
			}
			for _, revision := range revisions {
				names = append(names, logName{namespace, service, revision})
			}
		}
	}
	return names, nil
}

// directories lists the directories in dir of which the query wants one by name, or all when it names none. There
// are none when dir is not there.
func directories(dir, wanted string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listing logs: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() && (wanted == "" || wanted == entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

func logFile(dir string, number int) string { return filepath.Join(dir, strconv.Itoa(number)+".log") }

// logFiles lists the numbers of a log's files, oldest first.
func logFiles(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listing the log's files: %w", err)
	}
	var numbers []int
	for _, entry := range entries {
		digits, found := strings.CutSuffix(entry.Name(), ".log")
		if number, err := strconv.Atoi(digits); found && err == nil {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

func endsInNewline(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return err == nil
	}
	last := make([]byte, 1)
	_, err = file.ReadAt(last, info.Size()-1)
	return err == nil && last[0] == '\n'
}
