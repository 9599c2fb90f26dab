package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
)

const fewHosts, manyHosts = 10, 100_000

// hostOf is the name of a service's host.
func hostOf(number int) string { return fmt.Sprintf("service-%06d.default.localhost", number) }

// measureLookup prints how the CPU time of a request grows with the number of hosts: every request of a measurement
// is for another host, or for another of the few.
func measureLookup(ctx context.Context, o options, instance string) error {
	profiles := [2]string{}
	if o.profile != "" {
		profiles = [2]string{o.profile + ".few", o.profile + ".many"}
	}
	few, err := startChild("gateway", "-cpuprofile", profiles[0], "-hosts", strconv.Itoa(fewHosts), instance)
	if err != nil {
		return err
	}
	defer few.stop()
	many, err := startChild("gateway", "-cpuprofile", profiles[1], "-hosts", strconv.Itoa(manyHosts), instance)
	if err != nil {
		return err
	}
	defer many.stop()

	c := &comparison{variant: &variants[0], results: make(map[string]map[int][]result)}
	requests := make(map[string][][]byte)
	c.paths = []*path{
		{name: strconv.Itoa(fewHosts), address: few.address, pids: []int{few.pid()}},
		{name: strconv.Itoa(manyHosts), address: many.address, pids: []int{many.pid()}},
	}
	for i, hosts := range [...]int{fewHosts, manyHosts} {
		name := c.paths[i].name
		c.results[name] = make(map[int][]result)
		// As many requests in memory for the few hosts: the client's own use of the processor's caches is the same.
		for _, number := range rand.Perm(manyHosts) {
			requests[name] = append(requests[name], c.variant.request(hostOf(number%hosts)))
		}
	}
	for round := range o.rounds {
		for i := range c.paths {
			p := c.paths[(i+round)%len(c.paths)]
			client, err := newHTTP1Client(p.address, 64, c.variant, requests[p.name])
			if err != nil {
				return err
			}
			client.next = rand.IntN(manyHosts)
			r, err := measureWith(client, p, o.length)
			client.close()
			if err != nil {
				return fmt.Errorf("measuring the gateway with %s hosts: %w", p.name, err)
			}
			c.results[p.name][64] = append(c.results[p.name][64], r)
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	fmt.Println("# lookup: as base, each request for another host")
	for _, p := range c.paths {
		fmt.Printf("# %7s hosts: %.0f requests/s, %.1f us of CPU for each\n", p.name, median(c.values(p.name, 64, rate)), median(c.values(p.name, 64, cpu)))
	}
	ratios := between(c.values(c.paths[1].name, 64, cpu), c.values(c.paths[0].name, 64, cpu), ratio)
	fmt.Printf("gateway_lookup_100k_vs_10 %.3f ratio\n", median(ratios))
	fmt.Printf("#   half of the rounds between %.3f and %.3f\n", quantile(ratios, 0.25), quantile(ratios, 0.75))
	return nil
}
