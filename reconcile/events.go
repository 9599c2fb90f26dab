package reconcile

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// Bounds of what is told in events.
const (
	keepEvents           = time.Hour // since an event was seen last, as Kubernetes keeps them
	maxEventsOfNamespace = 500
	maxEvents            = 2000
	maxNotes             = 1000        // that wait to be written; more are lost
	maxEventMessage      = 1024        // bytes, as in Kubernetes
	eventsEvery          = time.Second // what happens again within it is written once
)

// What events say in a word: type, reason, source.
const (
	eventNormal  = "Normal"
	eventWarning = "Warning"
	eventSource  = "berth"

	reasonCreated         = "Created"
	reasonDeleted         = "Deleted"
	reasonTrafficChanged  = "TrafficChanged"
	reasonImagePulled     = "ImagePulled"
	reasonImagePullFailed = "ImagePullFailed"
	reasonStarted         = "InstanceStarted"
	reasonNotStarted      = "InstanceNotStarted"
	reasonUnready         = "InstanceUnready"
	reasonReadyAgain      = "InstanceReady"
	reasonExited          = "InstanceExited"
	reasonStopped         = "InstanceStopped"
	reasonShort           = "InstanceWaitsForMemory"
	reasonCrashLoop       = serving.ReasonCrashLoop
	reasonRestarted       = "ContainerRestarted"
)

// note is something that happened, to be told in an event.
type note struct {
	noteKey
	level, message string // level is the event's type
	count          int32
	first, last    time.Time
}

// noteKey tells apart what happened: notes with equal keys are one event, which counts them and has the last message.
type noteKey struct {
	object        serving.ObjectReference // what it is about; without UID a pod or a revision that is looked up later
	reason, topic string
}

// hash stands for a key in what is kept for long. Two keys with one hash become one event, which harms nobody.
func (k noteKey) hash() uint64 {
	h := fnv.New64a()
	for _, part := range []string{k.object.Namespace, k.object.Kind, k.object.Name, string(k.object.UID), k.reason, k.topic} {
		h.Write([]byte(part)) // never fails
		h.Write([]byte{0})
	}
	return h.Sum64()
}

// recorder writes events beside all other work: taking a note neither waits nor writes.
type recorder struct {
	store  store.Store
	logger *slog.Logger
	signal chan struct{} // holds a token while there are notes

	mu    sync.Mutex
	notes map[noteKey]*note // guarded by mu
	order []noteKey         // of notes, as they came; guarded by mu
	lost  int               // guarded by mu

	// The rest belongs to run.
	written *list.List               // of eventRecord, seen longest ago first
	index   map[uint64]*list.Element // by the hash of what happened
	stamp   int64                    // in the newest event's name
	counts  map[string]int           // of events, by namespace
}

// eventRecord is an event that was written.
type eventRecord struct {
	hash uint64
	name types.NamespacedName
	last time.Time
}

func newRecorder(objects store.Store, logger *slog.Logger) *recorder {
	return &recorder{
		store: objects, logger: logger, signal: make(chan struct{}, 1),
		notes:   map[noteKey]*note{},
		written: list.New(), index: map[uint64]*list.Element{}, counts: map[string]int{},
	}
}

// note takes a note about an object. What happens again with the same reason and topic becomes one event.
func (r *recorder) note(object serving.ObjectReference, level, reason, topic, message string) {
	now := time.Now()
	if len(message) > maxEventMessage {
		message = strings.ToValidUTF8(message[:maxEventMessage-len("…")], "") + "…"
	}
	k := noteKey{object, reason, topic}
	r.mu.Lock()
	n := r.notes[k]
	switch {
	case n != nil:
	case len(r.notes) >= maxNotes:
		r.lost++
		r.mu.Unlock()
		return
	default:
		n = &note{noteKey: k, first: now}
		r.notes[k] = n
		r.order = append(r.order, k)
	}
	n.level, n.message, n.last = level, message, now
	n.count++
	r.mu.Unlock()
	select {
	case r.signal <- struct{}{}:
	default:
	}
}

// run writes notes until ctx ends, and removes events that are old or too many.
func (r *recorder) run(ctx context.Context) {
	expiry := time.NewTimer(keepEvents)
	defer expiry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.signal:
			sleep(ctx, eventsEvery)
			r.writeNotes(ctx)
		case <-expiry.C:
		}
		if oldest := r.expire(ctx); oldest.IsZero() {
			expiry.Stop()
		} else {
			expiry.Reset(time.Until(oldest.Add(keepEvents)) + time.Second)
		}
	}
}

func (r *recorder) writeNotes(ctx context.Context) {
	r.mu.Lock()
	notes, order, lost := r.notes, r.order, r.lost
	r.notes, r.order, r.lost = map[noteKey]*note{}, nil, 0
	r.mu.Unlock()
	if lost > 0 {
		r.logger.Warn("more happened at once than can be told in events", "events", len(order), "lost", lost)
	}
	for _, k := range order {
		if ctx.Err() != nil {
			return
		}
		if err := r.write(ctx, notes[k]); err != nil {
			r.logger.Warn("writing an event", "reason", k.reason, "object", k.object.Name, "error", err)
		}
	}
}

// write makes the event of a note, or counts it on the one there is. Events about what is gone are not written.
func (r *recorder) write(ctx context.Context, n *note) error {
	if n.object.UID == "" {
		found, err := r.lookUp(ctx, n.object)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		n.object = found
	}
	record := r.record(n)
	event := &serving.Event{
		ObjectMeta:     serving.ObjectMeta{Namespace: record.name.Namespace, Name: record.name.Name},
		InvolvedObject: n.object,
		Reason:         n.reason, Message: n.message, Type: n.level, Count: n.count,
		FirstTimestamp: v1.NewTime(n.first.Truncate(time.Second)), LastTimestamp: v1.NewTime(n.last.Truncate(time.Second)),
		Source: serving.EventSource{Component: eventSource}, ReportingController: eventSource,
	}
	o, err := r.store.Get(ctx, serving.KindEvent, event.Namespace, event.Name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		_, err = r.store.Create(ctx, event)
	case err == nil:
		before := o.(*serving.Event)
		event.Count += before.Count
		event.FirstTimestamp = before.FirstTimestamp
		_, err = r.store.Update(ctx, event, store.Spec)
	}
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrTerminating) {
		return nil // deleted by its reader just now, or the namespace goes
	}
	if err != nil {
		return err
	}
	r.remember(record)
	return nil
}

// record returns that of a note's event. The names of new ones tell their order, in which lists show them.
func (r *recorder) record(n *note) eventRecord {
	hash := n.hash()
	if e := r.index[hash]; e != nil {
		record := e.Value.(eventRecord)
		record.last = n.last
		return record
	}
	r.stamp = max(r.stamp+1, n.first.UnixNano())
	name := types.NamespacedName{Namespace: n.object.Namespace, Name: fmt.Sprintf("%s.%x", n.object.Name, r.stamp)}
	return eventRecord{hash: hash, name: name, last: n.last}
}

// lookUp completes a reference to a pod; one to a revision becomes that to its subject.
func (r *recorder) lookUp(ctx context.Context, object serving.ObjectReference) (serving.ObjectReference, error) {
	kind, ok := serving.FindKind(object.APIVersion, object.Kind)
	if !ok {
		return object, fmt.Errorf("unknown kind %q of apiVersion %q", object.Kind, object.APIVersion)
	}
	o, err := r.store.Get(ctx, kind, object.Namespace, object.Name)
	if err != nil {
		return object, err
	}
	if kind.String() == serving.KindRevision.String() {
		return subject(o), nil
	}
	object.UID = o.GetUID()
	return object, nil
}

func (r *recorder) remember(record eventRecord) {
	if e := r.index[record.hash]; e != nil {
		e.Value = record
		r.written.MoveToBack(e)
		return
	}
	r.index[record.hash] = r.written.PushBack(record)
	r.counts[record.name.Namespace]++
}

// expire removes events that are old or too many, and returns when the oldest that is left was seen last.
func (r *recorder) expire(ctx context.Context) time.Time {
	before := time.Now().Add(-keepEvents)
	for e := r.written.Front(); e != nil; {
		record, next := e.Value.(eventRecord), e.Next()
		old := record.last.Before(before) || len(r.index) > maxEvents
		if !old && !r.crowded() {
			break // those behind it are younger
		}
		if old || r.counts[record.name.Namespace] > maxEventsOfNamespace {
			_, err := r.store.Delete(ctx, serving.KindEvent, record.name.Namespace, record.name.Name, serving.DeleteOptions{})
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				r.logger.Warn("removing an old event", "error", err)
				return record.last
			}
			r.forget(e)
		}
		e = next
	}
	if e := r.written.Front(); e != nil {
		return e.Value.(eventRecord).last
	}
	return time.Time{}
}

func (r *recorder) forget(e *list.Element) {
	record := e.Value.(eventRecord)
	r.written.Remove(e)
	delete(r.index, record.hash)
	if r.counts[record.name.Namespace]--; r.counts[record.name.Namespace] == 0 {
		delete(r.counts, record.name.Namespace)
	}
}

// crowded tells whether a namespace has more events than it may.
func (r *recorder) crowded() bool {
	for _, n := range r.counts {
		if n > maxEventsOfNamespace {
			return true
		}
	}
	return false
}

// subject is what an event about an object is filed under: the service that it belongs to, or else its configuration,
// or itself. There its user looks for it.
func subject(o serving.Object) serving.ObjectReference {
	labels := o.GetLabels()
	kind, name, uid := serving.KindOf(o), o.GetName(), o.GetUID()
	switch {
	case labels[serving.LabelService] != "":
		kind, name, uid = serving.KindService, labels[serving.LabelService], types.UID(labels[serving.LabelServiceUID])
	case labels[serving.LabelConfiguration] != "":
		kind, name, uid = serving.KindConfiguration, labels[serving.LabelConfiguration], types.UID(labels[serving.LabelConfigurationUID])
	}
	return serving.ObjectReference{APIVersion: kind.APIVersion(), Kind: kind.Name, Namespace: o.GetNamespace(), Name: name, UID: uid}
}

// Happened tells what happened to an instance; the autoscaler calls it.
func (r *Reconciler) Happened(e autoscaler.Event) {
	revision := e.Revision.Revision
	object := serving.ObjectReference{
		APIVersion: serving.KindRevision.APIVersion(), Kind: serving.KindRevision.Name, Namespace: e.Revision.Namespace, Name: revision,
	}
	tell := func(level, reason, format string, args ...any) {
		r.events.note(object, level, reason, revision, fmt.Sprintf(format, args...))
	}
	switch e.What {
	case autoscaler.Started:
		tell(eventNormal, reasonStarted, "Started an instance of revision %q in %s", revision, e.Took.Round(time.Millisecond))
	case autoscaler.NotStarted:
		tell(eventWarning, reasonNotStarted, "An instance of revision %q did not start: %s", revision, e.Text)
	case autoscaler.Exited:
		tell(eventWarning, reasonExited, "Instance %s %s %s after it was ready", e.Instance, e.Text, e.Took.Round(time.Millisecond))
	case autoscaler.Looping:
		tell(eventWarning, reasonCrashLoop, "Revision %q: %s", revision, loopMessage(e.Failures, e.Next))
	case autoscaler.Stopped:
		tell(eventNormal, reasonStopped, "Stopped an instance of revision %q: %s", revision, e.Text)
	case autoscaler.Short:
		tell(eventWarning, reasonShort, "An instance of revision %q waits for %s", revision, e.Text)
	case autoscaler.Unready, autoscaler.Recovered:
		level, reason, message := eventWarning, reasonUnready, "takes no requests: "+e.Text
		if e.What == autoscaler.Recovered {
			level, reason, message = eventNormal, reasonReadyAgain, fmt.Sprintf("takes requests again after %s", e.Took.Round(time.Millisecond))
		}
		tell(level, reason, "Instance %s %s", e.Instance, message)
		pod := podName(autoscaler.InstanceStatus{ID: e.Instance, Revision: revision})
		r.events.note(podReference(e.Revision.Namespace, pod), level, reason, "", "The instance "+message)
	}
}

// podReference refers to a pod that is looked up when its event is written.
func podReference(namespace, name string) serving.ObjectReference {
	return serving.ObjectReference{APIVersion: serving.KindPod.APIVersion(), Kind: serving.KindPod.Name, Namespace: namespace, Name: name}
}

// tellOfRestarts tells which containers of a pod were started again since before.
func (r *Reconciler) tellOfRestarts(id autoscaler.Key, before, now *serving.Pod) {
	for _, status := range now.Status.ContainerStatuses {
		for _, old := range before.Status.ContainerStatuses {
			if old.Name != status.Name || status.RestartCount <= old.RestartCount {
				continue
			}
			message := fmt.Sprintf("Container %s of instance %s was started again", status.Name, now.Annotations[serving.AnnotationInstance])
			switch last := status.LastTerminationState.Terminated; {
			case last == nil:
			case last.Message != "":
				message += ": " + last.Message
			default:
				message += fmt.Sprintf(": it ended with exit code %d (%s)", last.ExitCode, last.Reason)
			}
			r.events.note(subject(now), eventWarning, reasonRestarted, id.Revision+" "+status.Name, message)
			pod := podReference(now.Namespace, now.Name)
			pod.UID, pod.FieldPath = now.UID, "spec.containers{"+status.Name+"}"
			r.events.note(pod, eventWarning, reasonRestarted, status.Name, message)
		}
	}
}

// tellOfTraffic tells where a route's requests go from now on.
func (r *Reconciler) tellOfTraffic(route *serving.Route, before []serving.TrafficTarget) {
	shares := func(traffic []serving.TrafficTarget) string {
		var all []string
		for _, t := range traffic {
			if t.Percent == nil || *t.Percent == 0 {
				continue
			}
			all = append(all, fmt.Sprintf("%s (%d%%)", t.RevisionName, *t.Percent))
		}
		return strings.Join(all, ", ")
	}
	if now := shares(route.Status.Traffic); now != "" && now != shares(before) {
		r.events.note(subject(route), eventNormal, reasonTrafficChanged, route.Name, "Requests go to "+now)
	}
}
