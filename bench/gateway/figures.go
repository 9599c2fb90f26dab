package main

import (
	"fmt"
)

// published is the CPU time, in microseconds, that each request took of Knative's activator and queue-proxy with 64
// connections, for the variants that it was measured for: once, on another machine, where nginx was measured beside
// it. They are the middles of 310 to 350 and 12.6 to 14, and of 380 to 415.
var published = map[string]struct{ knative, nginx float64 }{
	base:  {330, 13.3},
	"64k": {397, 53},
}

// comparison holds the results of one variant: for each path and number of connections one result a round.
type comparison struct {
	variant *variant
	paths   []*path
	results map[string]map[int][]result
}

// values are one number of each round.
func (c *comparison) values(path string, connections int, field func(result) float64) []float64 {
	var values []float64
	for _, r := range c.results[path][connections] {
		values = append(values, field(r))
	}
	return values
}

// between combines the numbers that two paths have in each round.
func between(a, b []float64, combine func(a, b float64) float64) []float64 {
	combined := make([]float64, len(a))
	for i := range a {
		combined[i] = combine(a[i], b[i])
	}
	return combined
}

func rate(r result) float64   { return r.rate }
func cpu(r result) float64    { return r.cpu }
func p50(r result) float64    { return r.p50 }
func p99(r result) float64    { return r.p99 }
func others(r result) float64 { return r.others }

// rateLeft is what the rate would be without other work, if all that takes CPU time shares it evenly.
func rateLeft(r result) float64 { return r.rate / max(0.05, 1-r.others) }

func ratio(a, b float64) float64      { return a / b }
func difference(a, b float64) float64 { return a - b }

// print writes the table of a variant and its figures.
func (c *comparison) print() {
	fmt.Printf("# %s: %s\n", c.variant.name, c.variant.about)
	fmt.Printf("# %-13s %12s %12s %16s %10s %10s %12s\n", "path", "connections", "requests/s", "CPU us/request", "p50 us", "p99 us", "other work")
	for _, connections := range connectionCounts {
		for _, p := range c.paths {
			of := func(field func(result) float64) float64 { return median(c.values(p.name, connections, field)) }
			fmt.Printf("# %-13s %12d %12.0f %16.1f %10.0f %10.0f %10.0f %%\n", p.name, connections, of(rate), of(cpu), of(p50), of(p99), 100*of(others))
		}
	}
	for _, p := range c.paths {
		if p.name == "direct" || p.name == "gateway" {
			continue
		}
		c.printRatio("rps", p.name, rate)
		left := between(c.values("gateway", 64, rateLeft), c.values(p.name, 64, rateLeft), ratio)
		fmt.Printf("#   by what other work left of the machine: %.3f, half of the rounds between %.3f and %.3f\n",
			median(left), quantile(left, 0.25), quantile(left, 0.75))
		if p.name != "reverseproxy" {
			c.printRatio("cpu", p.name, cpu)
		}
	}
	for _, p := range c.paths {
		if p.name != "direct" {
			c.printAdded(p.name)
		}
	}
	if p, ok := published[c.variant.name]; ok {
		c.printKnative(p.knative, p.nginx)
	}
}

// printRatio prints the gateway's number by a peer's. The quartiles tell how far the machine's noise moves it.
func (c *comparison) printRatio(what, peer string, field func(result) float64) {
	ratios := between(c.values("gateway", 64, field), c.values(peer, 64, field), ratio)
	fmt.Printf("gateway_%s_vs_%s%s %.3f ratio\n", what, peer, c.variant.suffix(), median(ratios))
	fmt.Printf("#   half of the rounds between %.3f and %.3f\n", quantile(ratios, 0.25), quantile(ratios, 0.75))
}

// printAdded prints how much longer half of the requests take over a path than directly, with one connection.
func (c *comparison) printAdded(path string) {
	added := between(c.values(path, 1, p50), c.values("direct", 1, p50), difference)
	fmt.Printf("%s_added_p50_us%s %.1f us\n", path, c.variant.suffix(), median(added))
}

func (c *comparison) printKnative(knative, nginx float64) {
	fmt.Printf("# Knative's activator and queue-proxy took %.0f us of CPU for each request on another machine, %.1f times nginx there.\n", knative, knative/nginx)
	fmt.Printf("gateway_cpu_vs_knative_published%s %.3f ratio\n", c.variant.suffix(), median(c.values("gateway", 64, cpu))/knative)
}
