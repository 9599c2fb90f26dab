package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	"github.com/berth-run/berth/autoscaler"
	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

func (a *api) healthz(http.ResponseWriter, *http.Request) (any, error) { return text("ok"), nil }

func (a *api) readyz(http.ResponseWriter, *http.Request) (any, error) {
	if a.Ready != nil {
		if err := a.Ready(); err != nil {
			return nil, notReady(err)
		}
	}
	return text("ok"), nil
}

// info describes the platform to people.
func (a *api) info(http.ResponseWriter, *http.Request) (any, error) {
	info := map[string]string{}
	maps.Copy(info, a.Engine.Info())
	if a.Facts != nil {
		maps.Copy(info, a.Facts())
	}
	if a.Version != "" {
		info["version"] = a.Version
	}
	return map[string]any{"info": info}, nil
}

// instances lists the instances there are now, in a namespace or in all.
func (a *api) instances(_ http.ResponseWriter, r *http.Request) (any, error) {
	namespace := r.PathValue("namespace")
	items := []autoscaler.InstanceStatus{}
	for _, i := range a.Instances() {
		if namespace == "" || i.Namespace == namespace {
			items = append(items, i)
		}
	}
	return map[string][]autoscaler.InstanceStatus{"items": items}, nil
}

// log writes the lines of a service's instances, of those that are gone too, as one JSON object each.
func (a *api) log(w http.ResponseWriter, r *http.Request) (any, error) {
	query, err := logQuery(r)
	if err != nil {
		return nil, err
	}
	if err := a.hasLog(r.Context(), query); err != nil {
		return nil, err
	}
	release, err := a.stream()
	if err != nil {
		return nil, err
	}
	defer release()
	l := newLines(w)
	if err := l.begin(); err != nil {
		return nil, nil // the client is gone
	}
	var unsent error
	err = a.Engine.Logs(r.Context(), query, func(line engine.LogLine) error {
		if unsent = l.write(line); unsent == nil && query.Follow {
			unsent = l.flush()
		}
		return unsent
	})
	if unsent != nil || r.Context().Err() != nil {
		return nil, nil
	}
	if err == nil {
		_ = l.flush()
		return nil, nil
	}
	// The header is sent: the error goes where the reader looks.
	a.Logger.Error("reading a service's log", "service", query.Service, "error", err)
	line := engine.LogLine{Time: time.Now(), Revision: query.Revision, Instance: query.Instance, Stream: "system", Text: "the log ends here: " + err.Error()}
	_ = errors.Join(l.write(line), l.flush())
	return nil, nil
}

func logQuery(r *http.Request) (q engine.LogQuery, err error) {
	q = engine.LogQuery{
		Namespace: r.PathValue("namespace"), Service: r.PathValue("name"),
		Revision: r.URL.Query().Get("revision"), Instance: r.URL.Query().Get("instance"),
	}
	if q.Follow, err = boolean(r, "follow"); err != nil {
		return q, err
	}
	tail, err := number(r, "tailLines")
	if err != nil {
		return q, err
	}
	q.Tail = max(tail, 0)
	since, err := seconds(r, "sinceSeconds")
	if err != nil {
		return q, err
	}
	if since >= 0 {
		q.Since = time.Now().Add(-since)
	}
	if tail == 0 { // to an engine 0 is all
		q.Since = time.Now()
	}
	return q, nil
}

// hasLog returns ErrNotFound for a service that neither is nor has left a log.
func (a *api) hasLog(ctx context.Context, q engine.LogQuery) error {
	_, unknown := a.Store.Get(ctx, serving.KindService, q.Namespace, q.Service)
	if !errors.Is(unknown, store.ErrNotFound) {
		return unknown
	}
	some := errors.New("there is a line")
	err := a.Engine.Logs(ctx, engine.LogQuery{Namespace: q.Namespace, Service: q.Service, Tail: 1},
		func(engine.LogLine) error { return some })
	switch {
	case errors.Is(err, some):
		return nil
	case err != nil:
		return fmt.Errorf("reading the log of service %q: %w", q.Service, err)
	}
	return unknown
}
