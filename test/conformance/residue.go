package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
)

const (
	// settleTimeout is how long a server may take to remove what the tests have deleted.
	settleTimeout = 2 * time.Minute
	// Links to instances are kept for the next ones, so there are as many as there were instances at once: a second
	// run may have a few more at once than the first, but no run adds to what is there. A link is two files.
	moreLinks = 12
	moreFiles = 2*moreLinks + 40
	// forgotten is how the one object begins that the suite makes and does not delete: TestProjectedComplex's.
	forgotten = "configmaps serving-tests/projected-complex-"
)

// residue is what there is in the test namespaces and on the machine while no test runs.
type residue struct {
	objects   []string // "revisions.serving.knative.dev serving-tests/hello-00001"
	instances int
	cgroups   int // of instances
	links     int // interfaces to instances, used or kept
	files     int // that the server has open
	mounts    int // that the server sees
	memory    string
}

// String lists it, without the names of objects.
func (r *residue) String() string {
	return fmt.Sprintf("%d objects, %d instances, %d cgroups; the server has %d links, %d mounts, %d open files, %s of memory",
		len(r.objects), r.instances, r.cgroups, r.links, r.mounts, r.files, r.memory)
}

// check compares what is there after a run with what was there before. What a server keeps for the next use may
// grow in its first run.
func (r *residue) check(before *residue, warm bool) error {
	var errs []error
	if len(r.objects) > 0 {
		errs = append(errs, fmt.Errorf("objects are left: %q", r.objects))
	}
	if r.instances > 0 || r.cgroups > 0 {
		errs = append(errs, fmt.Errorf("%d instances and %d cgroups are left", r.instances, r.cgroups))
	}
	if !warm {
		return errors.Join(errs...)
	}
	for _, thing := range []struct {
		name             string
		before, now, may int
	}{
		{"links", before.links, r.links, moreLinks},
		{"open files", before.files, r.files, moreFiles},
		{"mounts", before.mounts, r.mounts, 0},
	} {
		if thing.now > thing.before+thing.may {
			errs = append(errs, fmt.Errorf("there were %d %s after the first run, there are %d after the second", thing.before, thing.name, thing.now))
		}
	}
	return errors.Join(errs...)
}

// settle waits until what the tests have deleted is gone, for as long as that may take, and returns what is left
// beside what was there at first.
func (p *platform) settle(ctx context.Context, first *residue) (*residue, error) {
	deadline := time.Now().Add(settleTimeout)
	for {
		now, err := p.residue(ctx, first)
		if err != nil || now.check(now, false) == nil || time.Now().After(deadline) {
			return now, err
		}
		select {
		case <-p.ended:
			return nil, fmt.Errorf("the server has ended: its log is %s", p.logPath)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// residue looks at the server. Objects that were there at first are not counted.
func (p *platform) residue(ctx context.Context, first *residue) (*residue, error) {
	r := new(residue)
	var err error
	if r.objects, err = p.objects(ctx); err != nil {
		return nil, err
	}
	if first != nil {
		r.objects = slices.DeleteFunc(r.objects, func(o string) bool { return slices.Contains(first.objects, o) })
	}
	answer, err := p.discovery.RESTClient().Get().AbsPath("/apis/berth.run/v1/instances").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing instances: %w", err)
	}
	var instances struct{ Items []json.RawMessage }
	if err := json.Unmarshal(answer, &instances); err != nil {
		return nil, fmt.Errorf("listing instances: %w", err)
	}
	r.instances = len(instances.Items)
	mark, err := p.mark()
	if err != nil {
		return nil, err
	}
	r.cgroups, r.links = len(cgroupsOf(mark)), len(linksOf(mark))
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.process.Pid))
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.process.Pid))
	if err != nil {
		return nil, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.process.Pid))
	if err != nil {
		return nil, err
	}
	r.files, r.mounts = len(files), strings.Count(string(mounts), "\n")
	for line := range strings.Lines(string(status)) {
		if size, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			r.memory = strings.TrimSpace(size)
		}
	}
	return r, nil
}

// objects lists all there is in the test namespaces, and what belongs to no namespace, of all kinds that the server
// says it has. Events stay for an hour, as they should.
func (p *platform) objects(ctx context.Context) ([]string, error) {
	lists, err := p.discovery.ServerPreferredResources()
	if err != nil {
		return nil, fmt.Errorf("asking the server for its kinds: %w", err)
	}
	var all []string
	for _, list := range discovery.FilteredBy(discovery.SupportsAllVerbs{Verbs: []string{"list"}}, lists) {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, resource := range list.APIResources {
			if resource.Name == "events" {
				continue
			}
			namespaces := []string{""}
			if resource.Namespaced {
				namespaces = testNamespaces
			}
			for _, namespace := range namespaces {
				objects, err := p.dynamic.Resource(gv.WithResource(resource.Name)).Namespace(namespace).List(ctx, v1.ListOptions{})
				if err != nil {
					return nil, fmt.Errorf("listing %s in namespace %q: %w", resource.Name, namespace, err)
				}
				err = meta.EachListItem(objects, func(o runtime.Object) error {
					object, err := meta.Accessor(o)
					if err != nil {
						return err
					}
					name := fmt.Sprintf("%s %s/%s", gv.WithResource(resource.Name).GroupResource(), namespace, object.GetName())
					if !strings.HasPrefix(name, forgotten) {
						all = append(all, name)
					}
					return nil
				})
				if err != nil {
					return nil, err
				}
			}
		}
	}
	return all, nil
}

// mark is what the names of the server's cgroups, interfaces and files begin with, after "berth-". The server's file
// in /run tells which state directory it is for.
func (p *platform) mark() (string, error) {
	locks, err := filepath.Glob("/run/berth-*.lock")
	if err != nil {
		return "", err
	}
	for _, lock := range locks {
		dir, err := os.ReadFile(lock)
		if err != nil {
			continue // of a server that has stopped meanwhile
		}
		if filepath.Dir(strings.TrimSpace(string(dir))) == p.stateDir() {
			return strings.TrimSuffix(strings.TrimPrefix(filepath.Base(lock), "berth-"), ".lock"), nil
		}
	}
	return "", fmt.Errorf("no file /run/berth-*.lock is of the server on %s", p.stateDir())
}

// traces lists what is on the machine of a server.
func traces(mark string) []string {
	left := append(cgroupsOf(mark), linksOf(mark)...)
	files, err := filepath.Glob("/run/berth-" + mark + "*")
	if err != nil {
		return append(left, err.Error())
	}
	return append(left, files...)
}

// cgroupsOf lists the cgroups of a server's instances, in whatever hierarchies they are.
func cgroupsOf(mark string) []string {
	var all []string
	for _, pattern := range []string{"/sys/fs/cgroup/berth-", "/sys/fs/cgroup/*/berth-"} {
		found, err := filepath.Glob(pattern + mark + "/*/cgroup.procs")
		if err != nil {
			return []string{err.Error()}
		}
		for _, path := range found {
			if name := filepath.Base(filepath.Dir(path)); !slices.Contains(all, name) {
				all = append(all, name)
			}
		}
	}
	return all
}

// linksOf lists a server's interfaces.
func linksOf(mark string) []string {
	interfaces, err := net.Interfaces()
	if err != nil {
		return []string{err.Error()}
	}
	var all []string
	for _, i := range interfaces {
		if strings.HasPrefix(i.Name, "bt"+mark) {
			all = append(all, i.Name)
		}
	}
	return all
}
