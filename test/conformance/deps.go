//go:build e2e

package main

// What the suite is built from, beyond what the program itself imports: with these, go mod tidy keeps the versions
// and the checksums that the suite's test files need.
import (
	_ "go.opentelemetry.io/otel/sdk/trace"
	_ "knative.dev/serving/test/conformance/api/shared"
	_ "knative.dev/serving/test/e2e"
	_ "knative.dev/serving/test/test_images/runtime/handlers"
	_ "knative.dev/serving/test/v1"
)
