package cli

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/berth-run/berth/server"
)

func TestServerDefaults_GiveWayToFlags(t *testing.T) {
	config := server.DefaultConfig()
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	bindStruct(flags, reflect.ValueOf(&config).Elem())
	if err := flags.Parse([]string{"--queue-wait", "30s", "--target-utilization", "0.7", "--min-instances", "1"}); err != nil {
		t.Fatal(err)
	}
	if err := takeDefaults(flags, "cloudrun"); err != nil {
		t.Fatal(err)
	}
	if config.Concurrency != 80 || !config.PrivateCookies || config.Scaling.CPUTarget != 0.6 {
		t.Errorf("Cloud Run's defaults are not taken: %+v", config)
	}
	if config.QueueWait != server.QueueWait(30*time.Second) || config.Scaling.TargetUtilization != 0.7 || config.Scaling.MinScale != 1 {
		t.Errorf("flags that were given do not count: %v %v %v", config.QueueWait, config.Scaling.TargetUtilization, config.Scaling.MinScale)
	}
}

func TestServerDefaults_GiveWayToTheEnvironmentWhichNamesThemToo(t *testing.T) {
	t.Setenv("BERTH_DEFAULTS", "heroku")
	if code, _, stderr := run(t, "server", "--state-dir", t.TempDir()); code != 2 || !strings.Contains(stderr, `"heroku": give knative or cloudrun`) {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	// The server does not start, and tells by its complaint which value counts.
	t.Setenv("BERTH_DEFAULTS", "cloudrun")
	t.Setenv("BERTH_CPU_TARGET", "7")
	if code, _, stderr := run(t, "server", "--state-dir", t.TempDir()); code != 1 || !strings.Contains(stderr, "--cpu-target 7: give") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}
