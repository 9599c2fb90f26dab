package server

import (
	"fmt"

	"github.com/berth-run/berth/autoscaler"
)

// Names of sets of defaults, for [NamedConfig].
const (
	DefaultsKnative  = "knative"
	DefaultsCloudRun = "cloudrun"
)

// NamedConfig returns the settings of a server that was given none but the name of its defaults.
func NamedConfig(defaults string) (Config, error) {
	switch defaults {
	case DefaultsKnative:
		return DefaultConfig(), nil
	case DefaultsCloudRun:
		return cloudRunConfig(), nil
	}
	return Config{}, fmt.Errorf("there are no defaults %q: give %s or %s", defaults, DefaultsKnative, DefaultsCloudRun)
}

// cloudRunConfig is the default settings with Cloud Run's where the two contracts disagree (contract 1.3 and 1.8).
func cloudRunConfig() Config {
	config := DefaultConfig()
	config.Concurrency = 80
	config.QueueWait = QueueWaitAuto
	config.PrivateCookies = true
	config.Throttling = true
	config.Boost = true
	config.Scaling = autoscaler.CloudRunSettings()
	return config
}
