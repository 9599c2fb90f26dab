package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

// Where the server describes its gateway, which the suite asks for the address to send requests to.
const (
	systemNamespace = "berth-system"
	gatewayService  = "gateway"
)

// testNamespaces are where the tests make their objects.
var testNamespaces = []string{"serving-tests", "serving-tests-alt"}

// platform is a running berth server with a state directory of its own.
type platform struct {
	discovery *discovery.DiscoveryClient
	dynamic   *dynamic.DynamicClient
	dir       string // holds "state", the state directory
	logPath   string
	process   *os.Process
	ended     chan struct{} // closed when the process has ended
	err       error         // how it ended; read it after ended is closed
}

func (p *platform) stateDir() string   { return filepath.Join(p.dir, "state") }
func (p *platform) kubeconfig() string { return filepath.Join(p.stateDir(), "kubeconfig") }

// start starts a server and waits until it is ready.
func start(ctx context.Context, o options) (*platform, error) {
	dir, err := os.MkdirTemp("", "berth-conformance-")
	if err != nil {
		return nil, err
	}
	p := &platform{dir: dir, logPath: filepath.Join(o.cache, "server.log"), ended: make(chan struct{})}
	log, err := os.Create(p.logPath)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	defer log.Close() // the process has its own
	command := exec.Command(o.berth, "server", "--state-dir", p.stateDir(), "--api-address", "127.0.0.1:0", "--gateway-address", "127.0.0.1:0")
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := command.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s: %w", o.berth, err), os.RemoveAll(dir))
	}
	p.process = command.Process
	go func() {
		p.err = command.Wait()
		close(p.ended)
	}()
	if err := p.awaitReady(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("waiting for the server, whose log is %s: %w", p.logPath, err), p.stop(o.keep))
	}
	return p, nil
}

func (p *platform) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := p.connect(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return errors.New("it ended")
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// connect reads the kubeconfig that the server writes, and asks whether it is ready.
func (p *platform) connect(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", p.kubeconfig())
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 100, 200
	if p.discovery, err = discovery.NewDiscoveryClientForConfig(config); err != nil {
		return err
	}
	if p.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return err
	}
	return p.discovery.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// stop ends the server as Ctrl-C does, and looks whether it leaves anything on the machine.
func (p *platform) stop(keep bool) error {
	mark, err := p.mark()
	// The server has ended already when this fails.
	_ = p.process.Signal(syscall.SIGTERM)
	<-p.ended
	err = errors.Join(err, p.err)
	if mark != "" {
		if left := traces(mark); len(left) > 0 {
			err = errors.Join(err, fmt.Errorf("the server has stopped and left %q", left))
		}
	}
	if keep {
		fmt.Println("the state directory is", p.stateDir())
		return err
	}
	return errors.Join(err, os.RemoveAll(p.dir))
}

// seed makes what the tests expect to be there: their namespaces, and a ConfigMap and a Secret to read.
func (p *platform) seed(ctx context.Context) error {
	for _, name := range testNamespaces {
		if err := p.create(ctx, "namespaces", map[string]any{
			"apiVersion": "v1", "kind": "Namespace",
			"metadata": map[string]any{"name": name},
		}); err != nil {
			return err
		}
	}
	if err := p.create(ctx, "configmaps", map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": "conformance-test-configmap", "namespace": testNamespaces[0]},
		"data":     map[string]any{"testKey": "testValue"},
	}); err != nil {
		return err
	}
	return p.create(ctx, "secrets", map[string]any{
		"apiVersion": "v1", "kind": "Secret",
		"metadata":   map[string]any{"name": "conformance-test-secret", "namespace": testNamespaces[0]},
		"stringData": map[string]any{"testKey": "testValue"},
	})
}

// create makes an object of core v1.
func (p *platform) create(ctx context.Context, resource string, object map[string]any) error {
	u := &unstructured.Unstructured{Object: object}
	of := p.dynamic.Resource(schema.GroupVersionResource{Version: "v1", Resource: resource})
	var err error
	if u.GetNamespace() == "" {
		_, err = of.Create(ctx, u, v1.CreateOptions{})
	} else {
		_, err = of.Namespace(u.GetNamespace()).Create(ctx, u, v1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("creating %s %q: %w", u.GetKind(), u.GetName(), err)
	}
	return nil
}
