package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/engine"
	"github.com/berth-run/berth/serving"
)

// session is the client's end of a command: its streams, as far as it asked for them, and where it is told how the
// command ended.
type session struct {
	stdin          io.ReadCloser // closing it discards what the client still sends
	stdout, stderr io.Writer
	sizes          <-chan engine.TerminalSize
	// finish sends the last message and ends the connection.
	finish func(status []byte)
}

// wanted are the streams that a client asks for.
type wanted struct{ stdin, stdout, stderr, terminal bool }

// exec runs a command in a container of a pod, as kubectl exec asks for it: the streams go through a WebSocket, or
// through SPDY for kubectl before 1.31.
func (a *api) exec(w http.ResponseWriter, r *http.Request) (any, error) {
	pod, instance, err := a.instanceOfPod(r)
	if err != nil {
		return nil, err
	}
	command, want, err := commandOf(r, pod)
	if err != nil {
		return nil, err
	}
	u, err := upgradeOf(r, []string{"v5.channel.k8s.io", "v4.channel.k8s.io"}, []string{"v4.channel.k8s.io"})
	if err != nil {
		return nil, err
	}
	release, err := a.stream()
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, conn, err := u.accept(w, r)
	if err != nil {
		a.Logger.Debug("a client could not upgrade its connection", "path", r.URL.Path, "error", err)
		return nil, nil
	}
	defer conn.close()
	open := conn.openChannels
	if !u.socket {
		open = conn.openStreams
	}
	s, err := open(ctx, want)
	if err != nil {
		a.Logger.Debug("a client did not open its streams", "path", r.URL.Path, "error", err)
		return nil, nil
	}
	a.Logger.Info("running a command for a client", "revision", pod.Labels[serving.LabelRevision], "instance", instance.ID(), "container", command.Container)
	a.runCommand(ctx, conn, instance, command, s)
	return nil, nil
}

// runCommand runs a command with a session's streams, and tells the client how it ended.
func (a *api) runCommand(ctx context.Context, conn *upgraded, instance engine.Instance, command engine.Command, s *session) {
	if s.stdin != nil {
		command.Stdin = s.stdin
	}
	if s.stdout != nil {
		command.Stdout = touching{s.stdout, conn}
	}
	if s.stderr != nil {
		command.Stderr = touching{s.stderr, conn}
	}
	command.Terminal = s.sizes
	code, err := instance.Exec(ctx, command)
	if s.stdin != nil {
		_ = s.stdin.Close()
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, errGone) {
		return // there is nobody to tell
	}
	status, err := json.Marshal(endOf(code, err))
	if err != nil {
		a.Logger.Error("telling how a command ended", "error", err)
		return
	}
	s.finish(status)
}

// endOf says how a command ended as clients of Kubernetes read it: its exit code is a cause.
func endOf(code int, err error) v1.Status {
	switch {
	case err != nil:
		s := failure(http.StatusInternalServerError, v1.StatusReasonInternalError, err.Error()).status
		s.Details = &v1.StatusDetails{Causes: []v1.StatusCause{{Message: err.Error()}}}
		return s
	case code != 0:
		s := failure(0, "NonZeroExitCode", fmt.Sprintf("command terminated with non-zero exit code: exit status %d", code)).status
		s.Details = &v1.StatusDetails{Causes: []v1.StatusCause{{Type: "ExitCode", Message: strconv.Itoa(code)}}}
		return s
	}
	return v1.Status{Status: v1.StatusSuccess}
}

// commandOf reads what is to be run where, and with which streams.
func commandOf(r *http.Request, pod *serving.Pod) (c engine.Command, want wanted, err error) {
	q := r.URL.Query()
	for name, flag := range map[string]*bool{"stdin": &want.stdin, "stdout": &want.stdout, "stderr": &want.stderr, "tty": &want.terminal} {
		if *flag, err = boolean(r, name); err != nil {
			return c, want, err
		}
	}
	c.Args = q["command"]
	switch {
	case len(c.Args) == 0 || c.Args[0] == "":
		return c, want, badRequest("you must specify a command: the parameter command is empty")
	case !want.stdin && !want.stdout && !want.stderr:
		return c, want, badRequest("you must specify at least 1 of stdin, stdout, stderr")
	case want.terminal && want.stderr:
		return c, want, badRequest("tty and stderr cannot both be true: a terminal has one output")
	}
	c.Container, err = chooseContainer(pod, q.Get("container"))
	return c, want, err
}

// instanceOfPod finds the pod that a request names and its instance.
func (a *api) instanceOfPod(r *http.Request) (*serving.Pod, engine.Instance, error) {
	o, err := a.Store.Get(r.Context(), serving.KindPod, r.PathValue("namespace"), r.PathValue("name"))
	if err != nil {
		return nil, nil, err
	}
	pod := o.(*serving.Pod)
	instance := a.Instance(pod.Annotations[serving.AnnotationInstance])
	if instance == nil {
		return nil, nil, badRequest("the instance of pod %q has ended; kubectl get pods lists those there are", pod.Name)
	}
	return pod, instance, nil
}
