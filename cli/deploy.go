package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/serving"
)

// deployFlags are the flags of `berth deploy` as they were given.
type deployFlags struct {
	image, source                string
	port, concurrency, timeout   string
	minScale, maxScale           string
	cpu, memory                  string
	command, args, labels        []string
	setEnv, updateEnv, removeEnv []string
	clearEnv, http2, insecure    bool
	affinity                     bool
	throttling, noThrottling     bool
	boost, noBoost               bool
	noTraffic, async             bool
	tag, revisionSuffix          string
}

func (p *program) deployCommand() *cobra.Command {
	var f deployFlags
	c := &cobra.Command{
		Use:   "deploy NAME (--image REFERENCE | --source DIR) [flags]",
		Short: "Deploy an image or source as a service, or change a service",
		Long: `Deploy an image or source as a service, and wait until it takes requests.

A service that exists gets a new revision with what the flags say; everything else stays as it is. Without --image
and --source its image stays too. When the new revision cannot start, the error says why and the old one keeps its
traffic. An interrupt ends the waiting only: the deploy goes on.`,
		Example: `  berth deploy hello --source ./examples/hello
  berth deploy web --image registry.example.com/web:1 --port 80 --memory 256Mi
  berth deploy web --image docker-archive:web.tar
  berth deploy web --set-env-vars '^:^GREETING=hello, world:MODE=fast'
  berth deploy web --image registry.example.com/web:2 --no-traffic --tag next`,
		Args:              arguments(0, 1, "NAME"),
		ValidArgsFunction: p.completeServices,
	}
	f.bind(c)
	// The only error is a flag that does not exist.
	_ = c.MarkFlagDirname("source")
	p.connected(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		name, err := f.name(args)
		if err != nil {
			return err
		}
		berth, namespace, err := p.connect(c)
		if err != nil {
			return err
		}
		return p.deploy(c, berth, namespace, name, &f)
	}
	return c
}

func (f *deployFlags) bind(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.image, "image", "", "image: a registry `REFERENCE`, or docker-archive:FILE, oci-archive:FILE or oci:DIR")
	flags.StringVar(&f.source, "source", "", "folder of a Go program to build and deploy")
	flags.BoolVar(&f.insecure, "insecure-registry", false, "pull the image over plain HTTP")
	under("What to run", flags, "image", "source", "insecure-registry")

	flags.StringVar(&f.port, "port", "", "port that the container listens on, or default (8080)")
	flags.BoolVar(&f.http2, "use-http2", false, "speak HTTP/2 without TLS to the container, as gRPC needs")
	flags.Var(&listValue{list: &f.command}, "command", "program to run instead of the image's entrypoint, with commas between words")
	flags.Var(&listValue{list: &f.args}, "args", "arguments of the program, with commas between them")
	flags.StringArrayVar(&f.setEnv, "set-env-vars", nil, "environment variables `A=1,B=2`, instead of those there are")
	flags.StringArrayVar(&f.updateEnv, "update-env-vars", nil, "environment variables `A=1,B=2`, beside those there are")
	flags.StringArrayVar(&f.removeEnv, "remove-env-vars", nil, "environment variables `A,B` to remove")
	flags.BoolVar(&f.clearEnv, "clear-env-vars", false, "remove all environment variables with literal values")
	under("The container", flags, "port", "use-http2", "command", "args", "set-env-vars", "update-env-vars", "remove-env-vars", "clear-env-vars")

	flags.StringVar(&f.cpu, "cpu", "", "CPU limit of an instance: 1, 0.5 or 500m")
	flags.StringVar(&f.memory, "memory", "", "memory limit of an instance: 512Mi")
	flags.StringVar(&f.concurrency, "concurrency", "", "most requests at the same time in one instance, or default; 0 is no limit")
	flags.StringVar(&f.timeout, "timeout", "", "longest time to answer a request: 300 or 5m")
	flags.StringVar(&f.minScale, "min-instances", "", "instances that run even without requests, or default; 0 lets the service go to zero")
	flags.StringVar(&f.maxScale, "max-instances", "", "most instances, or default; 0 is no limit")
	flags.BoolVar(&f.affinity, "session-affinity", false, "bring a client back to the instance that served it before, by a cookie; false ends it")
	flags.BoolVar(&f.throttling, "cpu-throttling", false, "withhold the CPU from instances between requests: they are frozen, and go on with the next one")
	flags.BoolVar(&f.noThrottling, "no-cpu-throttling", false, "leave the CPU to instances always, as background work needs")
	flags.BoolVar(&f.boost, "cpu-boost", false, "give instances more CPU than their limit until 10 seconds after they have started")
	flags.BoolVar(&f.noBoost, "no-cpu-boost", false, "give instances no more CPU than their limit, ever")
	under("Resources and scaling", flags, "cpu", "memory", "concurrency", "timeout", "min-instances", "max-instances", "session-affinity",
		"cpu-throttling", "no-cpu-throttling", "cpu-boost", "no-cpu-boost")

	flags.BoolVar(&f.noTraffic, "no-traffic", false, "leave all traffic on the revisions that have it")
	flags.StringVar(&f.tag, "tag", "", "give the new revision a URL of its own under this tag")
	flags.StringVar(&f.revisionSuffix, "revision-suffix", "", "name the new revision NAME-SUFFIX")
	flags.StringArrayVar(&f.labels, "labels", nil, "labels `A=1,B=2` of the service and its revision")
	flags.BoolVar(&f.async, "async", false, "do not wait until the service is ready")
	under("The revision", flags, "no-traffic", "tag", "revision-suffix", "labels", "async")
}

// listValue is a list as gcloud reads it; giving it again replaces it.
type listValue struct{ list *[]string }

func (v *listValue) String() string {
	if v.list == nil {
		return ""
	}
	return strings.Join(*v.list, ",")
}

func (v *listValue) Type() string { return "A,B" }

func (v *listValue) Set(text string) (err error) {
	*v.list, err = splitList(text)
	return err
}

// name is the service's name: the argument, or the name of the source's folder.
func (f *deployFlags) name(args []string) (string, error) {
	switch {
	case f.image != "" && f.source != "":
		return "", usagef("--image and --source exclude each other: give one")
	case len(args) == 1:
		return args[0], checkServiceName(args[0])
	case f.source == "":
		return "", usagef("deploy needs the NAME of the service: berth deploy NAME --image REFERENCE")
	}
	folder, err := filepath.Abs(f.source)
	if err != nil {
		return "", fmt.Errorf("finding source %q: %w", f.source, err)
	}
	name := strings.ToLower(filepath.Base(folder))
	if !isName(name) {
		return "", usagef("the folder's name %q cannot be the name of a service, which is %s: give NAME: berth deploy NAME --source %s",
			filepath.Base(folder), nameRule, shellWord(f.source))
	}
	return name, nil
}

// shellWord quotes a word for the shell where it needs it.
func shellWord(word string) string {
	if strings.ContainsFunc(word, func(r rune) bool { return !strings.ContainsRune("/._-+=:@%", r) && !isAlphanumeric(r) }) {
		return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	return word
}

func isAlphanumeric(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }

// change reads the flags that were given.
func (f *deployFlags) change(c *cobra.Command) (*change, error) {
	given := func(name string, value *string) *string {
		if !c.Flags().Changed(name) {
			return nil
		}
		return value
	}
	givenBool := func(name string, value *bool) *bool {
		if !c.Flags().Changed(name) {
			return nil
		}
		return value
	}
	ch := &change{
		insecureRegistry: givenBool("insecure-registry", &f.insecure),
		port:             given("port", &f.port), http2: givenBool("use-http2", &f.http2),
		command: f.command, args: f.args,
		cpu: f.cpu, memory: f.memory,
		concurrency: given("concurrency", &f.concurrency), timeout: given("timeout", &f.timeout),
		minScale: given("min-instances", &f.minScale), maxScale: given("max-instances", &f.maxScale),
		affinity:       givenBool("session-affinity", &f.affinity),
		revisionSuffix: f.revisionSuffix, tag: f.tag, noTraffic: f.noTraffic,
	}
	var err error
	if ch.throttling, err = eitherFlag(c, "cpu-throttling", f.throttling, f.noThrottling); err != nil {
		return nil, err
	}
	if ch.boost, err = eitherFlag(c, "cpu-boost", f.boost, f.noBoost); err != nil {
		return nil, err
	}
	if f.setEnv != nil && (f.updateEnv != nil || f.removeEnv != nil || f.clearEnv) {
		return nil, usagef("--set-env-vars replaces all variables, so it excludes --update-env-vars, --remove-env-vars and --clear-env-vars")
	}
	if ch.envRemove, err = splitNames("remove-env-vars", f.removeEnv); err != nil {
		return nil, err
	}
	ch.envClear = f.setEnv != nil || f.clearEnv
	envFlag, texts := "set-env-vars", f.setEnv
	if f.setEnv == nil {
		envFlag, texts = "update-env-vars", f.updateEnv
	}
	if ch.env, err = splitPairs(envFlag, "variable", texts); err != nil {
		return nil, err
	}
	for _, variable := range ch.env {
		if err := checkVariable(envFlag, variable.key); err != nil {
			return nil, err
		}
	}
	ch.labels, err = splitPairs("labels", "label", f.labels)
	return ch, err
}

// eitherFlag reads a flag and its opposite, --no-NAME; nil when neither was given.
func eitherFlag(c *cobra.Command, name string, yes, no bool) (*bool, error) {
	given, denied := c.Flags().Changed(name), c.Flags().Changed("no-"+name)
	switch {
	case given && denied:
		return nil, usagef("--%s and --no-%s exclude each other: give one", name, name)
	case denied:
		yes = !no
	case !given:
		return nil, nil
	}
	return &yes, nil
}

// deploy changes or creates the service and waits for it.
func (p *program) deploy(c *cobra.Command, berth *client.Client, namespace, name string, f *deployFlags) error {
	ctx := c.Context()
	ch, err := f.change(c)
	if err != nil {
		return err
	}
	// Flags are checked before anything is built or sent, on a service that is thrown away.
	if err := ch.check(name); err != nil {
		return err
	}
	current, err := berth.Services(namespace).Get(ctx, name)
	exists := !client.IsNotFound(err)
	if err != nil && exists {
		return err
	}
	if !exists && f.image == "" && f.source == "" {
		return usagef("service %q does not exist in namespace %q: give what to deploy with --image REFERENCE or --source DIR", name, namespace)
	}
	if !exists { // before anything is built and pushed in vain
		if _, err := berth.Namespaces().Get(ctx, namespace); client.IsNotFound(err) {
			return err
		}
	}
	if exists && current.DeletionTimestamp != nil {
		return fmt.Errorf("service %q is being deleted: deploy it again when it is gone", name)
	}
	// What does not go together with the service there is comes out before anything is built, too.
	if !exists {
		current = &serving.Service{ObjectMeta: serving.ObjectMeta{Name: name}}
	}
	if err := p.plan(ctx, berth, namespace, ch, current); err != nil {
		return err
	}

	progress := p.newProgress()
	defer progress.end()
	if f.image != "" || f.source != "" {
		reference, err := p.publish(ctx, berth, namespace, name, f, progress)
		if err != nil {
			return err
		}
		ch.image = &reference
	}
	service, err := p.write(ctx, berth, namespace, name, ch)
	if err != nil {
		return f.explain(err)
	}
	if f.async {
		fmt.Fprintf(p.stdout, "Service %s is being deployed; see how far it is with: %s\n", name, p.command("services describe %s", name))
		return nil
	}
	service, err = p.awaitReady(ctx, berth, service, progress)
	progress.end()
	if err != nil {
		return err
	}
	p.printDeployed(service)
	return nil
}

// check finds mistakes in the flags that do not depend on the service there is.
func (ch *change) check(name string) error {
	trial := *ch
	// Whether these are possible depends on the service.
	trial.noTraffic, trial.envRemove = false, nil
	return trial.apply(&serving.Service{ObjectMeta: serving.ObjectMeta{Name: name}})
}

// plan makes the change to a service in memory.
func (p *program) plan(ctx context.Context, berth *client.Client, namespace string, ch *change, service *serving.Service) error {
	revisions := berth.Revisions(namespace)
	if ch.image == nil && service.ResourceVersion != "" {
		if err := keepImage(ctx, revisions, service); err != nil {
			return err
		}
	}
	ch.number = 0
	switch {
	case ch.revisionSuffix != "":
		name := service.Name + "-" + ch.revisionSuffix
		_, err := revisions.Get(ctx, name)
		if err == nil || service.Spec.Template.Name == name {
			return fmt.Errorf("revision %q exists: give another --revision-suffix", name)
		}
		if !client.IsNotFound(err) {
			return err
		}
	case service.ResourceVersion != "":
		number, expected, err := nextNumber(ctx, berth, service)
		if err != nil {
			return err
		}
		if ch.tag != "" || !expected {
			ch.number = number
		}
	}
	return ch.apply(service)
}

// observedPatience is how long the server gets to look at a change before the next one is made.
const observedPatience = 10 * time.Second

// nextNumber is the number of the next revision of a service: the one that the server will choose when it is free,
// which expected tells, or the first free one above it.
func nextNumber(ctx context.Context, berth *client.Client, service *serving.Service) (number int64, expected bool, err error) {
	// The configuration counts; it may not have counted the service's last change yet. When the server does not look
	// in time the worst that can happen is that it says that the name is taken.
	waiting, stop := context.WithTimeout(ctx, observedPatience)
	defer stop()
	for event, err := range berth.Services(service.Namespace).Watch(waiting, client.Selector{Name: service.Name}) {
		if waiting.Err() != nil || event.Type == client.Deleted {
			break
		}
		if err != nil {
			return 0, false, err
		}
		if event.Type != client.Listed && event.Object.Status.ObservedGeneration >= service.Generation {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, false, err
	}
	configuration, err := berth.Configurations(service.Namespace).Get(ctx, service.Name)
	if client.IsNotFound(err) {
		return 1, true, nil
	}
	if err != nil {
		return 0, false, err
	}
	first := configuration.Generation + 1
	for number = first; ; number++ {
		_, err := berth.Revisions(service.Namespace).Get(ctx, numbered(service.Name, number))
		if client.IsNotFound(err) {
			return number, number == first, nil
		}
		if err != nil {
			return 0, false, err
		}
	}
}

// write creates or changes the service. Others may do so at the same time: it starts again then.
func (p *program) write(ctx context.Context, berth *client.Client, namespace, name string, ch *change) (*serving.Service, error) {
	services := berth.Services(namespace)
	for {
		service, err := services.Modify(ctx, name, func(service *serving.Service) error {
			return p.plan(ctx, berth, namespace, ch, service)
		})
		if !client.IsNotFound(err) {
			return service, err
		}
		service = &serving.Service{ObjectMeta: serving.ObjectMeta{Name: name}}
		if err := p.plan(ctx, berth, namespace, ch, service); err != nil {
			return nil, err
		}
		service, err = services.Create(ctx, service)
		if !client.IsAlreadyExists(err) {
			return service, err
		}
	}
}

// keepImage names the image that runs now by its digest, so that a change of something else does not also change
// the image because its tag has moved.
func keepImage(ctx context.Context, revisions client.Resource[*serving.Revision], service *serving.Service) error {
	template := &service.Spec.Template
	if service.Status.LatestCreatedRevisionName == "" || len(template.Spec.Containers) == 0 {
		return nil
	}
	revision, err := revisions.Get(ctx, service.Status.LatestCreatedRevisionName)
	if client.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	container := ingressContainer(template.Spec.Containers)
	if len(revision.Spec.Containers) == 0 || ingressContainer(revision.Spec.Containers).Image != container.Image {
		return nil // the template is newer than the revision
	}
	for _, status := range revision.Status.ContainerStatuses {
		if status.ImageDigest == "" || status.ImageDigest == container.Image {
			continue
		}
		if len(revision.Status.ContainerStatuses) > 1 && status.Name != container.Name {
			continue
		}
		if template.Annotations[annotationUserImage] == "" {
			setAnnotation(&template.ObjectMeta, annotationUserImage, container.Image)
		}
		container.Image = status.ImageDigest
	}
	return nil
}

// printDeployed says what a deploy has come to, as gcloud does.
func (p *program) printDeployed(service *serving.Service) {
	revision := service.Status.LatestReadyRevisionName
	var percent int64
	var tagged []serving.TrafficTarget
	for _, target := range service.Status.Traffic {
		if target.RevisionName != revision {
			continue
		}
		if target.Percent != nil {
			percent += *target.Percent
		}
		if target.Tag != "" && target.URL != nil {
			tagged = append(tagged, target)
		}
	}
	fmt.Fprintf(p.stdout, "Service %s revision %s is deployed and serves %d percent of traffic.\n", service.Name, revision, percent)
	if service.Status.URL != nil {
		fmt.Fprintf(p.stdout, "Service URL: %s\n", service.Status.URL)
	}
	for _, target := range tagged {
		fmt.Fprintf(p.stdout, "Revision URL (tag %s): %s\n", target.Tag, target.URL)
	}
	if percent == 0 {
		fmt.Fprintf(p.stdout, "To send it traffic: %s\n", p.command("services update-traffic %s --to-latest", service.Name))
	}
}
