package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// podLogOptions are the parameters of a pod's log, as kubectl logs sends them.
type podLogOptions struct {
	query      engine.LogQuery
	timestamps bool
	limit      int       // bytes; -1 is all
	until      time.Time // zero is now
	tail       int       // lines before until; -1 is all
}

// podLog writes the lines of a pod's container as plain text. Followed, it ends with the pod.
func (a *api) podLog(w http.ResponseWriter, r *http.Request) (any, error) {
	namespace, name := r.PathValue("namespace"), r.PathValue("name")
	o, err := a.Store.Get(r.Context(), serving.KindPod, namespace, name)
	if err != nil {
		return nil, err
	}
	pod := o.(*serving.Pod)
	options, err := a.podLogOptionsOf(r, pod)
	if err != nil {
		return nil, err
	}
	release, err := a.stream()
	if err != nil {
		return nil, err
	}
	defer release()
	if options.query.Follow {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		options.query.Done = a.untilGone(ctx, pod)
	}
	l := newLines(w)
	if err := l.beginAs("text/plain; charset=utf-8"); err != nil {
		return nil, nil // the client is gone
	}
	err = a.writePodLog(r.Context(), l, options)
	if err != nil && r.Context().Err() == nil {
		a.Logger.Error("reading a pod's log", "pod", name, "error", err)
		_ = l.writeRaw([]byte("the log ends here: " + err.Error() + "\n"))
	}
	_ = l.flush()
	return nil, nil
}

// errEnough ends the reading of a log.
var errEnough = errors.New("enough was read")

// writePodLog writes the selected lines. An error of the client's connection is not returned: there is nobody to tell.
func (a *api) writePodLog(ctx context.Context, l *lines, o podLogOptions) error {
	left := o.limit
	write := func(line engine.LogLine) error {
		text := line.Text + "\n"
		if o.timestamps {
			text = line.Time.UTC().Format(time.RFC3339Nano) + " " + text
		}
		if left >= 0 && len(text) >= left {
			text, left = text[:left], 0
		} else if left > 0 {
			left -= len(text)
		}
		if l.writeRaw([]byte(text)) != nil || left == 0 || o.query.Follow && l.flush() != nil {
			return errEnough
		}
		return nil
	}
	// The engine's own tail counts from the end.
	var last []engine.LogLine
	keep := write
	if o.tail >= 0 && !o.until.IsZero() {
		keep = func(line engine.LogLine) error {
			if last = append(last, line); len(last) > o.tail {
				last = last[1:]
			}
			return nil
		}
	}
	err := a.Engine.Logs(ctx, o.query, func(line engine.LogLine) error {
		if !o.until.IsZero() && !line.Time.Before(o.until) {
			return errEnough
		}
		return keep(line)
	})
	for _, line := range last {
		if err == nil || errors.Is(err, errEnough) {
			err = write(line)
		}
	}
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func (a *api) podLogOptionsOf(r *http.Request, pod *serving.Pod) (o podLogOptions, err error) {
	q := r.URL.Query()
	o.query = engine.LogQuery{
		Namespace: pod.Namespace, Service: pod.Labels[serving.LabelService], Revision: pod.Labels[serving.LabelRevision],
		Instance: pod.Annotations[serving.AnnotationInstance],
	}
	container, err := chooseContainer(pod, q.Get("container"))
	if err != nil {
		return o, err
	}
	if len(pod.Spec.Containers) > 1 {
		o.query.Container = container
	}
	switch stream := strings.ToLower(q.Get("stream")); stream {
	case "", "all":
		o.query.Streams = []string{"stdout", "stderr"} // not what the platform says
	case "stdout", "stderr":
		o.query.Streams = []string{stream}
	default:
		return o, badRequest("stream is %q: use All, Stdout or Stderr", q.Get("stream"))
	}
	if o.query.Follow, err = boolean(r, "follow"); err != nil {
		return o, err
	}
	if o.timestamps, err = boolean(r, "timestamps"); err != nil {
		return o, err
	}
	if o.limit, err = number(r, "limitBytes"); err == nil && o.limit == 0 {
		err = badRequest("limitBytes is 0: it must be greater than 0")
	}
	if err != nil {
		return o, err
	}
	if o.tail, err = number(r, "tailLines"); err != nil {
		return o, err
	}
	if o.query.Since, err = sinceOf(r); err != nil {
		return o, err
	}
	previous, err := boolean(r, "previous")
	if err != nil {
		return o, err
	}
	if previous {
		o.query.Follow = false // it has ended
		return o, a.onlyPrevious(&o, pod, container)
	}
	o.query.Tail = max(o.tail, 0)
	if o.tail == 0 { // to an engine 0 is all
		o.query.Since = time.Now()
	}
	return o, nil
}

// sinceOf reads sinceSeconds or sinceTime; the zero time when there is none.
func sinceOf(r *http.Request) (time.Time, error) {
	ago, err := seconds(r, "sinceSeconds")
	if err != nil {
		return time.Time{}, err
	}
	text := r.URL.Query().Get("sinceTime")
	switch {
	case ago >= 0 && text != "":
		return time.Time{}, badRequest("at most one of `sinceTime` or `sinceSeconds` may be specified")
	case ago == 0:
		return time.Time{}, badRequest("sinceSeconds is 0: it must be greater than 0")
	case ago > 0:
		return time.Now().Add(-ago), nil
	case text == "":
		return time.Time{}, nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, badRequest("sinceTime is %q: give a time as in RFC 3339, such as 2026-01-31T12:00:00Z", text)
	}
	return at, nil
}

// chooseContainer is the container of a pod that a client means; the errors are in Kubernetes' words.
func chooseContainer(pod *serving.Pod, name string) (string, error) {
	var names []string
	for _, c := range pod.Spec.Containers {
		names = append(names, c.Name)
	}
	switch {
	case name == "" && len(names) > 1:
		return "", badRequest("a container name must be specified for pod %s, choose one of: %v", pod.Name, names)
	case name == "":
		return names[0], nil
	case !slices.Contains(names, name):
		return "", badRequest("container %s is not valid for pod %s", name, pod.Name)
	}
	return name, nil
}

// onlyPrevious restricts the options to what a container wrote before it was started again last.
func (a *api) onlyPrevious(o *podLogOptions, pod *serving.Pod, container string) error {
	for _, i := range a.Instances() {
		if i.ID != o.query.Instance {
			continue
		}
		for _, c := range i.Containers {
			if c.Name == container && c.Restarts > 0 {
				o.until = c.Since
				return nil
			}
		}
	}
	return badRequest("previous terminated container %q in pod %q not found", container, pod.Name)
}

// untilGone returns a channel that is closed when a pod is gone, or ctx ends.
func (a *api) untilGone(ctx context.Context, pod *serving.Pod) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := a.awaitGone(ctx, pod); err == nil || !errors.Is(err, store.ErrGone) && ctx.Err() == nil {
				return
			}
		}
	}()
	return done
}

// awaitGone returns nil once a pod is gone, ErrGone when the watch was too slow to tell.
func (a *api) awaitGone(ctx context.Context, pod *serving.Pod) error {
	w, err := a.Store.Watch(ctx, serving.KindPod, pod.Namespace, "")
	if err != nil {
		return fmt.Errorf("watching pod %s: %w", pod.Name, err)
	}
	defer w.Stop()
	o, err := a.Store.Get(ctx, serving.KindPod, pod.Namespace, pod.Name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return err
	case o.GetUID() != pod.UID:
		return nil
	}
	for event := range w.Events() {
		if event.Type == store.Deleted && event.Object.GetUID() == pod.UID {
			return nil
		}
	}
	return store.ErrGone
}
