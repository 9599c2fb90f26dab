package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/berth-run/berth/serving"
)

// informerTime is the variable that makes the test of informers last another time than the short one: "1h".
const informerTime = "BERTH_SOAK_INFORMER"

// TestInformer_CacheEqualsTheStoreAfterWritesAndRestarts: client-go's informers follow objects of all kinds, declared
// and ephemeral, while these are written and deleted and the server is stopped and killed.
func TestInformer_CacheEqualsTheStoreAfterWritesAndRestarts(t *testing.T) {
	t.Parallel()
	lasts := 10 * time.Second
	if text := os.Getenv(informerTime); text != "" {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", informerTime, err)
		}
	}
	p := spawn(t, stateDir(t))
	url := p.deploy(service("hello", program(t, "hello"))).Status.URL.String()
	config, err := clientcmd.BuildConfigFromFlags("", p.addresses.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1 // no limit
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}

	following, stop := context.WithCancel(t.Context())
	var informers sync.WaitGroup
	defer informers.Wait()
	defer stop()
	var all []*follower
	for _, kind := range serving.Kinds {
		for _, paged := range []bool{false, true} {
			f := newFollower(t, objects, kind, paged)
			informers.Go(func() { f.informer.Run(following.Done()) })
			all = append(all, f)
		}
	}

	platform := p.platform // the next ones have its addresses
	writing, enough := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	var writes atomic.Int64
	for n := range 3 {
		writers.Go(func() { writeConfigMaps(writing, objects, n, &writes) })
	}
	writers.Go(func() { writeServices(writing, platform, &writes) })
	writers.Go(func() { wakeAgain(writing, platform, url) })
	restarts := 0
	pause := min(lasts/2, time.Minute)
	for end := time.Now().Add(lasts); time.Now().Before(end); restarts++ {
		time.Sleep(min(pause, time.Until(end)))
		if restarts%2 == 0 {
			p.kill()
		} else if err := p.stop(); err != nil {
			t.Fatal(err)
		}
		p = p.again()
	}
	enough()
	writers.Wait()

	for _, f := range all {
		f.awaitEqual(t, objects)
	}
	t.Logf("%d informers agree with the store after %d writes and %d restarts", len(all), writes.Load(), restarts)
	if writes.Load() < 50 {
		t.Errorf("only %d writes succeeded", writes.Load())
	}
}

// follower is an informer, and what its events alone tell.
type follower struct {
	kind     serving.Kind
	paged    bool
	informer cache.SharedIndexInformer

	mu   sync.Mutex
	seen map[string]string // versions by namespace/name; guarded by mu
}

// pagedListWatch lists in pages and then watches, as informers did before they could ask for a list in a watch.
type pagedListWatch struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is asked for by client-go under this name.
func (pagedListWatch) IsWatchListSemanticsUnSupported() bool { return true }

func newFollower(t *testing.T, objects dynamic.Interface, kind serving.Kind, paged bool) *follower {
	t.Helper()
	resource := objects.Resource(resourceOf(kind))
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options v1.ListOptions) (runtime.Object, error) {
			if options.Limit > 0 {
				options.Limit = 3 // pages enough for few objects
			}
			return resource.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options v1.ListOptions) (watch.Interface, error) {
			return resource.Watch(ctx, options)
		},
	}
	source := cache.ToListWatcherWithWatchListSemantics(lw, objects)
	if paged {
		source = pagedListWatch{lw}
	}
	f := &follower{kind: kind, paged: paged, seen: map[string]string{}}
	f.informer = cache.NewSharedIndexInformer(source, &unstructured.Unstructured{}, 0, cache.Indexers{})
	set := func(o any) {
		key, err := cache.MetaNamespaceKeyFunc(o)
		if err != nil {
			t.Error(err)
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.seen[key] = o.(v1.Object).GetResourceVersion()
	}
	_, err := f.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(o any) {
			key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o)
			if err != nil {
				t.Error(err)
				return
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.seen, key)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	// That the server is away, and has forgotten a version, is what is tested: an informer tries again.
	if err := f.informer.SetWatchErrorHandlerWithContext(func(context.Context, *cache.Reflector, error) {}); err != nil {
		t.Fatal(err)
	}
	return f
}

func resourceOf(kind serving.Kind) schema.GroupVersionResource {
	return kind.GroupVersion().WithResource(kind.Plural)
}

// awaitEqual waits until the informer's cache, and what its events told, are what the server has.
func (f *follower) awaitEqual(t *testing.T, objects dynamic.Interface) {
	t.Helper()
	await(t, fmt.Sprintf("the informer of %s (paged: %t) to agree with the server", f.kind, f.paged), func() error {
		list, err := objects.Resource(resourceOf(f.kind)).List(t.Context(), v1.ListOptions{})
		if err != nil {
			return err
		}
		want, cached := map[string]string{}, map[string]string{}
		for i := range list.Items {
			key, _ := cache.MetaNamespaceKeyFunc(&list.Items[i])
			want[key] = list.Items[i].GetResourceVersion()
		}
		for _, o := range f.informer.GetStore().List() {
			key, _ := cache.MetaNamespaceKeyFunc(o)
			cached[key] = o.(v1.Object).GetResourceVersion()
		}
		f.mu.Lock()
		seen := maps.Clone(f.seen)
		f.mu.Unlock()
		if diff := cmp.Diff(want, cached); diff != "" {
			return fmt.Errorf("its cache differs (-server +cache):\n%s", diff)
		}
		if diff := cmp.Diff(want, seen); diff != "" {
			return fmt.Errorf("what its events told differs (-server +told):\n%s", diff)
		}
		return nil
	})
}

// writePause is how long a writer waits between two writes: a soak is to be long, not only many writes.
const writePause = 5 * time.Millisecond

// writeConfigMaps creates, changes and deletes a few ConfigMaps until ctx ends. The server may be away meanwhile.
func writeConfigMaps(ctx context.Context, objects dynamic.Interface, n int, writes *atomic.Int64) {
	resource := objects.Resource(resourceOf(serving.KindConfigMap)).Namespace("default")
	for ctx.Err() == nil {
		name := fmt.Sprintf("written-%d-%d", n, rand.IntN(10))
		value := fmt.Sprint(rand.Uint64())
		var err error
		switch rand.IntN(4) {
		case 0:
			err = resource.Delete(ctx, name, v1.DeleteOptions{})
		case 1:
			o := &unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name}, "data": map[string]any{"key": value},
			}}
			_, err = resource.Create(ctx, o, v1.CreateOptions{})
		default:
			var patch []byte
			patch, err = json.Marshal(map[string]any{"data": map[string]string{"key": value}})
			if err == nil {
				_, err = resource.Patch(ctx, name, types.MergePatchType, patch, v1.PatchOptions{})
			}
		}
		if err == nil {
			writes.Add(1)
		}
		pace(ctx, writePause)
	}
}

// writeServices creates, labels and deletes services, whose image is nowhere, until ctx ends: the platform writes what
// belongs to them, and events.
func writeServices(ctx context.Context, p *platform, writes *atomic.Int64) {
	for ctx.Err() == nil {
		s := service(fmt.Sprintf("written-%d", rand.IntN(4)), "127.0.0.1:9/none:none")
		s.Labels = map[string]string{"example.com/count": fmt.Sprint(rand.Uint32())}
		_, _, err := p.Services("default").Apply(ctx, s)
		if err == nil && rand.IntN(5) == 0 {
			err = p.Services("default").Delete(ctx, s.Name, serving.DeleteOptions{})
		}
		if err == nil {
			writes.Add(1)
		}
		pace(ctx, 20*writePause)
	}
}

// wakeAgain sends requests to a service so that its instances come and go, and pods and events with them.
func wakeAgain(ctx context.Context, p *platform, url string) {
	for ctx.Err() == nil {
		_, _ = p.tryGet(url) // the server may be away
		pace(ctx, time.Duration(rand.IntN(4000))*time.Millisecond)
	}
}

func pace(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
