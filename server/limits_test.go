package server

import (
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/gateway"
)

func TestLimits_AreEachASettingOfTheGateway(t *testing.T) {
	var limits Limits
	fields := reflect.ValueOf(&limits).Elem()
	for i := range fields.NumField() {
		fields.Field(i).SetInt(int64(i + 1))
	}
	var got gateway.Config
	limits.fill(&got)
	want := gateway.Config{
		MaxHeaderBytes: 1, MaxHeaderFields: 2, MaxTargetBytes: 3, MaxBodyBytes: 4, ReadHeaderTimeout: 5, IdleTimeout: 6,
		WriteTimeout: 7, MaxStreams: 8, MaxResets: 9, MaxConnections: 10, MaxConnectionsPerClient: 11,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if fields.NumField() != 11 {
		t.Errorf("there are %d limits: say above what each one sets", fields.NumField())
	}
}

func TestLimits_FitIntoTheOpenFiles(t *testing.T) {
	for _, c := range []struct {
		asked int
		files uint64
		want  int
	}{
		{50_000, 1 << 20, 50_000},
		{50_000, 20_512, 10_000},
		{0, 20_512, 10_000},
		{50_000, 100, 256},
		{0, ^uint64(0), 1 << 30}, // unlimited
	} {
		if got := withinFiles(c.asked, c.files); got != c.want {
			t.Errorf("%d connections with %d files: got %d, want %d", c.asked, c.files, got, c.want)
		}
	}
}

func TestConfig_NamesLimitsThatCannotBeWorkedWith(t *testing.T) {
	config := DefaultConfig()
	if err := config.check(); err != nil {
		t.Fatal(err)
	}
	config.Limits = Limits{MaxHeaderBytes: 100, MaxURLLength: 100, MaxRequestBody: -1, MaxConnections: -1}
	err := config.check()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"--max-header-bytes 100: it must be 1024 or more", "--max-header-fields 0: ", "--max-url-length 100: it must be 256 or more",
		"--max-url-length 100: it must be less than --max-header-bytes, 100", "--max-request-body -1: ", "--max-connections -1: ",
		"--read-header-timeout 0s: ", "--keep-alive-timeout 0s: ", "--write-timeout 0s: ", "--max-streams 0: ", "--max-resets 0: ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
}
