package cli

import (
	"bytes"
	"context"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// run runs one command in this process.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func TestMain_ExitCodesTellUsageFromFailure(t *testing.T) {
	nowhere := "--state-dir=" + t.TempDir()
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{}, 0, ""},
		{[]string{"--help"}, 0, ""},
		{[]string{"services"}, 0, ""},
		{[]string{"--version"}, 0, ""},
		{[]string{"help"}, 0, ""},
		{[]string{"help", "services", "list"}, 0, ""},
		{[]string{"services", "--help"}, 0, ""},
		{[]string{"services", "list", "--help"}, 0, ""},
		{[]string{"help", "nothing"}, 2, `unknown command "nothing" for "berth"`},
		{[]string{"help", "services", "lst"}, 2, `unknown command "lst" for "berth services"; did you mean list?`},
		{[]string{"help", "services", "list", "more"}, 2, `berth services list has no command "more"`},
		{[]string{"foo", "--help"}, 2, `unknown command "foo" for "berth"`},
		{[]string{"services", "lst", "--help"}, 2, "did you mean list?"},
		{[]string{"servces"}, 2, "did you mean server or services?"},
		{[]string{"services", "lst"}, 2, "did you mean list?"},
		{[]string{"services", "list", "more"}, 2, `takes no arguments, and was given "more"`},
		{[]string{"services", "describe", "a", "b"}, 2, `was also given "b"`},
		{[]string{"deploy", "x", "--bogus"}, 2, "unknown flag: --bogus"},
		{[]string{"deploy"}, 2, "needs the NAME"},
		{[]string{"deploy", "x", "--image", "a", "--source", "."}, 2, "exclude each other"},
		{[]string{"deploy", "x", "--cpu-throttling=maybe"}, 2, `"maybe" for "--cpu-throttling" flag: not true or false` + "\n"},
		{[]string{"logs", "x", "--tail", "all"}, 2, `"all" for "--tail" flag: not a whole number` + "\n"},
		{[]string{"server", "--tick", "soon"}, 2, "not a duration such as 300, 300s or 5m"},
		{[]string{"server", "more"}, 2, "takes no arguments"},
		{[]string{"services", "list", nowhere}, 1, "no server has run here yet"},
	} {
		code, _, stderr := run(t, test.args...)
		if code != test.code || !strings.Contains(stderr, test.says) {
			t.Errorf("berth %s: exit code %d, want %d; stderr %q, want %q in it",
				strings.Join(test.args, " "), code, test.code, stderr, test.says)
		}
		if code == 1 && strings.Contains(stderr, "--help") {
			t.Errorf("berth %s: a failure points to the help: %q", strings.Join(test.args, " "), stderr)
		}
	}
}

func TestMain_BadEnvironmentVariableIsNamed(t *testing.T) {
	t.Setenv("BERTH_MAX_INSTANCES", "many")
	code, _, stderr := run(t, "server", "--state-dir", t.TempDir())
	if code != 2 || !strings.Contains(stderr, `environment variable BERTH_MAX_INSTANCES: invalid value "many": not a whole number`) {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}

func TestServer_FlagThatIsGoneNamesTheNewOne(t *testing.T) {
	const want = "give --prepared-memory"
	if code, _, stderr := run(t, "server", "--state-dir", t.TempDir(), "--prepared", "16"); code != 2 || !strings.Contains(stderr, want) {
		t.Errorf("--prepared: exit code %d, stderr %q", code, stderr)
	}
	t.Setenv("BERTH_PREPARED", "16")
	if code, _, stderr := run(t, "server", "--state-dir", t.TempDir()); code != 2 || !strings.Contains(stderr, want) {
		t.Errorf("BERTH_PREPARED: exit code %d, stderr %q", code, stderr)
	}
}

func TestServer_WarnsOfEnvironmentVariablesThatAreNoSettings(t *testing.T) {
	for _, variable := range []string{"BERTH_INSTANCEMEMORY", "BERTH_INSTANCE_MEMORY", "BERTH_TOKEN_FILE", "MEMORY"} {
		t.Setenv(variable, "1Gi")
	}
	var log strings.Builder
	warnOfVariables(new(program).serverCommand().Flags(), slog.New(slog.NewTextHandler(&log, nil)))
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "variable=BERTH_INSTANCEMEMORY") {
		t.Errorf("got:\n%s\nwant one line, of BERTH_INSTANCEMEMORY", got)
	}
}

func TestServerHelp_IsTheGoldenFile(t *testing.T) {
	_, got, _ := run(t, "server", "--help")
	// The default depends on the machine.
	got = regexp.MustCompile(`(start at the same moment) \(default \d+\)`).ReplaceAllString(got, "$1 (default N)")
	golden := filepath.Join("testdata", "server-help.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("berth server --help (-want +got; go test ./cli -update rewrites it):\n%s", diff)
	}
}

func TestServerHelp_HasAHeadingForEveryFlag(t *testing.T) {
	c := new(program).serverCommand()
	c.Flags().VisitAll(func(flag *pflag.Flag) {
		if !flag.Hidden && flag.Annotations[groupAnnotation][0] == otherHeading {
			t.Errorf("--%s is in none of the headings of serverHeadings", flag.Name)
		}
	})
	for _, h := range serverHeadings() {
		for _, name := range h.flags {
			if c.Flags().Lookup(name) == nil {
				t.Errorf("serverHeadings has --%s, which is no flag of the server", name)
			}
		}
	}
}

func TestLogs_FollowGoesOnUntilInterruptedWhichIsNoFailure(t *testing.T) {
	dir := t.TempDir()
	p, err := newPlatform(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	if code, _, stderr := run(t, "deploy", "hello", "--image", "registry.example.com/hello:1", "--state-dir", dir); code != 0 {
		t.Fatalf("deploying: %s", stderr)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	out := &trigger{text: "third", pull: interrupt}
	var errs bytes.Buffer
	code := Main(ctx, []string{"logs", "hello", "--follow", "--state-dir", dir}, strings.NewReader(""), out, &errs)
	if code != 0 || errs.Len() > 0 || !strings.Contains(out.String(), "first") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, out, &errs)
	}
}

func TestDeploy_InterruptLeavesTheDeployGoingAndSaysSo(t *testing.T) {
	dir := t.TempDir()
	p, err := newPlatform(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	ctx, interrupt := context.WithCancel(t.Context())
	var out bytes.Buffer
	errs := &trigger{text: "Service hello: accepted", pull: interrupt}
	code := Main(ctx, []string{"deploy", "hello", "--image", "registry.example.com/hello:1", "--state-dir", dir}, strings.NewReader(""), &out, errs)
	if code != 1 || !strings.Contains(errs.String(), "the deploy goes on: see how far it is with: berth services describe hello") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, &out, errs)
	}
	if code, _, stderr := run(t, "services", "describe", "hello", "--state-dir", dir); code != 0 {
		t.Errorf("the service is not there: %s", stderr)
	}
}

// trigger is a writer that pulls once when text was written.
type trigger struct {
	bytes.Buffer
	text string
	pull func()
}

func (w *trigger) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if strings.Contains(w.String(), w.text) {
		w.pull()
	}
	return n, err
}

func TestHelp_OfACommandIsWhatItsFlagPrints(t *testing.T) {
	_, byFlag, _ := run(t, "services", "update-traffic", "--help")
	_, byCommand, _ := run(t, "help", "services", "update-traffic")
	if diff := cmp.Diff(byFlag, byCommand); diff != "" || !strings.Contains(byFlag, "--to-revisions") {
		t.Errorf("(-flag +command):\n%s", diff)
	}
	if code, out, _ := run(t, "foo", "--help"); code != 2 || out != "" {
		t.Errorf("exit code %d, stdout %q", code, out)
	}
}
