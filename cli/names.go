package cli

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation"
)

// What the server says of a name comes after an image was built and pushed, and speaks of fields: these checks name
// the flag or argument that is wrong, first. The limits are the server's.

// nameRule is what names of services, revisions and tags are held to: they are labels of DNS names (RFC 1035).
const nameRule = "lower-case letters, digits and -, beginning with a letter, ending with a letter or digit, at most 63 characters"

func isName(text string) bool { return len(validation.IsDNS1035Label(text)) == 0 }

// checkServiceName refuses a name that no service can have.
func checkServiceName(name string) error {
	if !isName(name) {
		return usagef("%q cannot be the name of a service: it is %s", name, nameRule)
	}
	return nil
}

// checkTag refuses a tag that the service cannot have: tag and service are one label of the tag's host.
func checkTag(flag, tag, service string) error {
	switch label := tag + "-" + service; {
	case !isName(tag):
		return usagef("--%s: %q cannot be a tag: it is %s", flag, tag, nameRule)
	case len(label) > validation.DNS1035LabelMaxLength:
		return usagef("--%s: tag %q is too long: its host begins with %s, which has %d characters and may have %d",
			flag, tag, label, len(label), validation.DNS1035LabelMaxLength)
	}
	return nil
}

// checkSuffix refuses a suffix that no revision of the service can have.
func checkSuffix(suffix, service string) error {
	if name := service + "-" + suffix; !isName(name) {
		return usagef("--revision-suffix: %q cannot be the name of a revision: it is %s", name, nameRule)
	}
	return nil
}

// checkVariable refuses what cannot be the name of an environment variable.
func checkVariable(flag, name string) error {
	if len(validation.IsEnvVarName(name)) > 0 {
		return usagef("--%s: %q cannot be the name of an environment variable: it is letters, digits, _, - and ., and does "+
			"not begin with a digit", flag, name)
	}
	return nil
}

// numbered is the name of a service's revision of a number, as the server gives them: "web-00003". Where the name of
// the service leaves no room for that the number has no zeros.
func numbered(service string, number int64) string {
	name := fmt.Sprintf("%s-%05d", service, number)
	if len(name) > validation.DNS1035LabelMaxLength {
		name = fmt.Sprintf("%s-%d", service, number)
	}
	return name
}
