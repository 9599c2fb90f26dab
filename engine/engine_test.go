package engine

import (
	"errors"
	"runtime"
	"syscall"
	"testing"
	"time"
)

func TestStartError_SaysWhatWasSeenAndWhatToDo(t *testing.T) {
	for _, test := range []struct {
		failure StartError
		want    string
	}{
		{
			StartError{Reason: ReasonExited, Port: 8080, Exit: &Exit{Code: 3}, LastLines: []string{"no config", "bye"}},
			"the container exited with code 3 before it listened on port 8080; last lines of its log:\nno config\nbye",
		}, {
			StartError{Reason: ReasonExited, Port: 8080, Exit: &Exit{Signal: syscall.SIGSEGV}},
			"the container was killed by signal 11 (segmentation fault) before it listened on port 8080",
		}, {
			StartError{Reason: ReasonExited, Port: 8080, Exit: &Exit{Signal: syscall.SIGKILL, OOM: true}},
			"the container used more memory than its limit and was killed before it listened on port 8080; raise the memory limit",
		}, {
			StartError{Reason: ReasonNotListening, Port: 8080, Waited: 240*time.Second + time.Millisecond},
			"the container did not listen on port 8080 within 4m0s",
		}, {
			StartError{Reason: ReasonNotListening, Port: 8080, Waited: 500 * time.Millisecond, Listened: []string{"127.0.0.1:8080"}},
			"the container listens on port 8080 of 127.0.0.1 only, where no request can reach it: listen on 0.0.0.0 instead",
		}, {
			StartError{Reason: ReasonNotListening, Port: 8080, Waited: time.Minute, Listened: []string{"[::]:3000"}},
			"the container did not listen on port 8080 within 1m0s; it listens on [::]:3000 instead: listen on the port given in the PORT environment variable, or set the service's port",
		}, {
			StartError{Reason: ReasonNotListening, Port: 8080, Waited: time.Second, Err: errors.New("GET /up on port 8080 answered 503"), Listened: []string{"[::]:8080"}},
			"the container's startup probe on port 8080 did not pass within 1s: GET /up on port 8080 answered 503",
		}, {
			StartError{Reason: ReasonNotListening, Waited: time.Second, Err: errors.New(`the command ["x"] ended with exit code 1`)},
			`the container's startup probe did not pass within 1s: the command ["x"] ended with exit code 1`,
		}, {
			StartError{Reason: ReasonWrongPlatform, Err: errors.New("the program is for EM_AARCH64: exec format error")},
			"the program is for EM_AARCH64: exec format error; build the image for linux/" + runtime.GOARCH,
		}, {
			StartError{Reason: ReasonNotExecutable, Err: errors.New("the program is missing")},
			"the program is missing",
		},
	} {
		if got := test.failure.Error(); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}
