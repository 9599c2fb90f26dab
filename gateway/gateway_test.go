package gateway

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/berth-run/berth/engine"
)

func fetch(t testing.TB, r *http.Request) (*http.Response, string) {
	t.Helper()
	return fetchBy(t, http.DefaultClient, r)
}

func fetchBy(t testing.TB, client *http.Client, r *http.Request) (*http.Response, string) {
	t.Helper()
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

func TestGateway_AnswersWithTheInstancesResponse(t *testing.T) {
	a := NewActivator(testRevision())
	a.Add(serveInstance(t, "hello-00001-a", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Path", r.RequestURI)
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "hello")
	}))
	_, address := startGateway(t, Config{}, a)

	response, body := fetch(t, newRequest(t, "GET", address, "/a%2Fb//c?q=1%20", ""))
	if response.StatusCode != http.StatusTeapot || body != "hello" || response.Header.Get("X-Path") != "/a%2Fb//c?q=1%20" {
		t.Errorf("got %d %q, path %q", response.StatusCode, body, response.Header.Get("X-Path"))
	}
	waitForLoad(t, a, 0, 0)
}

func TestGateway_SaysThatNoServiceHasTheHost(t *testing.T) {
	_, address := startGateway(t, Config{}, nil)
	response, body := fetch(t, newRequest(t, "GET", address, "/", ""))
	if response.StatusCode != http.StatusNotFound || !strings.Contains(body, `"hello.test"`) {
		t.Errorf("got %d %q", response.StatusCode, body)
	}
}

func TestGateway_TellsWaitingClientsWhyTheInstanceDidNotStart(t *testing.T) {
	revision := testRevision()
	var a *Activator
	revision.Wake = func() {
		a.Fail(&engine.StartError{Reason: engine.ReasonExited, Exit: &engine.Exit{Code: 3}, Port: 8080, LastLines: []string{"secret"}})
	}
	a = NewActivator(revision)
	_, address := startGateway(t, Config{}, a)
	response, body := fetch(t, newRequest(t, "GET", address, "/", ""))
	want := textNotStarted + "\nthe container exited with code 3 before it listened on port 8080\n"
	if response.StatusCode != http.StatusInternalServerError || body != want {
		t.Errorf("got %d %q, want 500 %q", response.StatusCode, body, want)
	}
}

func TestGateway_KeepsTheMachinesFaultsFromClients(t *testing.T) {
	if got := publicReason(errors.New("mounting /var/lib/berth/x")); strings.Contains(got, "/var/lib") {
		t.Errorf("got %q", got)
	}
}

func TestGateway_Answers404WhenTheRevisionIsDeletedAfterItWasChosen(t *testing.T) {
	a := NewActivator(testRevision())
	_, address := startGateway(t, Config{}, a)
	a.Close(errors.New("the revision was deleted"))
	response, body := fetch(t, newRequest(t, "GET", address, "/", ""))
	if want := "The request was not delivered: the revision was deleted.\n"; response.StatusCode != http.StatusNotFound || body != want {
		t.Errorf("got %d %q, want 404 %q", response.StatusCode, body, want)
	}
}
