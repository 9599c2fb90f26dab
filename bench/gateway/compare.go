package main

import (
	"context"
	"os"
	"slices"
)

// measureParts measures the parts that were chosen and prints each when it is done.
func measureParts(ctx context.Context, o options, parts []string) error {
	instance, err := startChild("instance")
	if err != nil {
		return err
	}
	defer instance.stop()
	if slices.ContainsFunc(variants[:], func(v variant) bool { return slices.Contains(parts, v.name) }) {
		if err := compareAll(ctx, o, parts, instance); err != nil {
			return err
		}
	}
	for _, other := range alone {
		if slices.Contains(parts, other.name) {
			if err := other.measure(ctx, o, instance.address); err != nil {
				return err
			}
		}
	}
	return nil
}

// alone is what is measured of the gateway alone.
var alone = [...]struct {
	name    string
	measure func(ctx context.Context, o options, instance string) error
}{
	{"lookup", measureLookup},
	{"idle", measureIdle},
	{"websockets", measureWebSockets},
}

// compareAll measures all variants that were chosen, over all paths.
func compareAll(ctx context.Context, o options, parts []string, instance *child) error {
	gateway, err := startChild("gateway", "-cpuprofile", o.profile, instance.address)
	if err != nil {
		return err
	}
	defer gateway.stop()
	reverse, err := startChild("reverseproxy", instance.address)
	if err != nil {
		return err
	}
	defer reverse.stop()
	paths := []*path{
		{name: "direct", address: instance.address},
		{name: "gateway", address: gateway.address, pids: []int{gateway.pid()}},
		{name: "reverseproxy", address: reverse.address, pids: []int{reverse.pid()}},
	}
	for _, peer := range startPeers(instance.address, o.peers) {
		defer peer.stop()
		paths = append(paths, &path{name: peer.name, address: peer.address, http2: peer.http2, pids: peer.pids})
	}
	ours := []int{os.Getpid(), instance.pid()}
	for _, p := range paths {
		ours = append(ours, p.pids...)
	}
	for _, p := range paths {
		p.ours = ours
	}
	for i := range variants {
		v := &variants[i]
		if !slices.Contains(parts, v.name) {
			continue
		}
		c, err := compare(ctx, o, v, paths)
		if err != nil {
			return err
		}
		c.print()
	}
	return nil
}

// compare measures one variant over all paths, in turns.
func compare(ctx context.Context, o options, v *variant, paths []*path) (*comparison, error) {
	c := &comparison{variant: v, paths: paths, results: make(map[string]map[int][]result)}
	for _, p := range paths {
		c.results[p.name] = make(map[int][]result)
	}
	for _, connections := range connectionCounts {
		length := o.length
		if connections == 1 {
			length /= 2
		}
		for _, p := range paths { // warm up
			if _, err := measure(p, v, connections, length/4); err != nil {
				return nil, err
			}
		}
		for round := range o.rounds {
			// Nobody is always measured after the same one.
			for i := range paths {
				p := paths[(i+round)%len(paths)]
				r, err := measure(p, v, connections, length)
				if err != nil {
					return nil, err
				}
				c.results[p.name][connections] = append(c.results[p.name][connections], r)
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
			}
		}
	}
	return c, nil
}
