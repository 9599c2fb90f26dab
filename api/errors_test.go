package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

func TestStatusOf_SaysThatANamespaceEndedWhileAnObjectWasMadeInIt(t *testing.T) {
	s := statusOf(fmt.Errorf(`namespaces "team": %w`, store.ErrTerminating), serving.KindSecret, "x")
	if s.Code != http.StatusForbidden || s.Reason != "Forbidden" || !strings.Contains(s.Message, `secrets "x" is forbidden`) || !strings.Contains(s.Message, `"team": the namespace is being deleted`) {
		t.Errorf("got %+v", s)
	}
}
