package cli

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/berth-run/berth/serving"
)

// latest is the word for the newest ready revision, whichever that is, as gcloud has it.
const latest = "LATEST"

// traffic is how a service's requests are divided: shares by revision, and tags. The revision "LATEST" is the newest
// ready one. Tags have no share, as gcloud keeps them.
type traffic struct {
	shares []share
	tags   []tag
}

type share struct {
	revision string
	percent  int64
}

type tag struct{ name, revision string }

// readTraffic reads a service's spec.traffic. None is all to the latest.
func readTraffic(targets []serving.TrafficTarget) *traffic {
	t := &traffic{}
	for _, target := range targets {
		revision := target.RevisionName
		if revision == "" {
			revision = latest
		}
		if target.Percent != nil && *target.Percent > 0 {
			t.add(revision, *target.Percent)
		}
		if target.Tag != "" {
			t.tags = append(t.tags, tag{target.Tag, revision})
		}
	}
	if len(t.shares) == 0 && len(targets) == 0 {
		t.shares = []share{{latest, 100}}
	}
	return t
}

// targets is the traffic as spec.traffic: shares first, then tags.
func (t *traffic) targets() []serving.TrafficTarget {
	var targets []serving.TrafficTarget
	target := func(revision string) serving.TrafficTarget {
		if revision == latest {
			isLatest := true
			return serving.TrafficTarget{LatestRevision: &isLatest}
		}
		isLatest := false
		return serving.TrafficTarget{RevisionName: revision, LatestRevision: &isLatest}
	}
	for _, s := range t.shares {
		next := target(s.revision)
		percent := s.percent
		next.Percent = &percent
		targets = append(targets, next)
	}
	for _, g := range t.tags {
		next := target(g.revision)
		next.Tag = g.name
		targets = append(targets, next)
	}
	return targets
}

func (t *traffic) add(revision string, percent int64) {
	for i := range t.shares {
		if t.shares[i].revision == revision {
			t.shares[i].percent += percent
			return
		}
	}
	t.shares = append(t.shares, share{revision, percent})
}

// pin turns the share of the latest revision into one of the revision that is the latest now.
func (t *traffic) pin(revision string) {
	shares := t.shares
	t.shares = nil
	for _, s := range shares {
		if s.revision == latest {
			s.revision = revision
		}
		t.add(s.revision, s.percent)
	}
}

func (t *traffic) setTag(name, revision string) {
	for i := range t.tags {
		if t.tags[i].name == name {
			t.tags[i].revision = revision
			return
		}
	}
	t.tags = append(t.tags, tag{name, revision})
}

// removeTag removes a tag; false when there is none of this name.
func (t *traffic) removeTag(name string) bool {
	before := len(t.tags)
	t.tags = slices.DeleteFunc(t.tags, func(g tag) bool { return g.name == name })
	return len(t.tags) < before
}

// tagged is the revision that a tag leads to.
func (t *traffic) tagged(name string) (string, bool) {
	for _, g := range t.tags {
		if g.name == name {
			return g.revision, true
		}
	}
	return "", false
}

// assign gives revisions the shares that were asked for. What is left of 100 percent stays with the other
// revisions, in the proportion they have now (gcloud's rule). It is an error when more than 100 is asked for, or
// less and no other revision has traffic.
func (t *traffic) assign(asked []share) error {
	var sum int64
	var words []string
	for _, s := range asked {
		sum += s.percent
		words = append(words, fmt.Sprintf("%s=%d", s.revision, s.percent))
	}
	var others []share
	var otherSum int64
	for _, s := range t.shares {
		if !slices.ContainsFunc(asked, func(a share) bool { return a.revision == s.revision }) {
			others = append(others, s)
			otherSum += s.percent
		}
	}
	switch {
	case sum > 100:
		return usagef("traffic adds up to %d percent, and must be 100: %s", sum, strings.Join(words, ", "))
	case sum < 100 && otherSum == 0:
		return usagef("traffic adds up to %d percent, and must be 100: %s (no other revision has traffic that the "+
			"remaining %d percent could stay with)", sum, strings.Join(words, ", "), 100-sum)
	}
	t.shares = nil
	for _, s := range slices.Concat(asked, proportional(others, otherSum, 100-sum)) {
		if s.percent > 0 {
			t.add(s.revision, s.percent)
		}
	}
	return nil
}

// proportional divides total among shares as they are divided now, in whole percents: those that lose most by
// rounding down get the rest.
func proportional(shares []share, sum, total int64) []share {
	if sum == 0 {
		return nil
	}
	scaled := make([]share, len(shares))
	order := make([]int, len(shares))
	left := total
	for i, s := range shares {
		scaled[i] = share{s.revision, s.percent * total / sum}
		left -= scaled[i].percent
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool {
		return shares[order[a]].percent*total%sum > shares[order[b]].percent*total%sum
	})
	for i := range left {
		scaled[order[i]].percent++
	}
	return scaled
}

// trafficChange is what the flags of update-traffic say.
type trafficChange struct {
	toLatest    bool
	toRevisions []pair // revision → percent
	toTags      []pair // tag → percent
	clearTags   bool   // remove every tag first
	updateTags  []pair // tag → revision
	removeTags  []string
}

// apply makes the change. Tags change first, so that new ones can be given traffic.
func (ch *trafficChange) apply(t *traffic) error {
	if ch.clearTags {
		t.tags = nil
	}
	for _, name := range ch.removeTags {
		if !t.removeTag(name) {
			return fmt.Errorf("the service has no tag %q to remove; it has: %s", name, t.tagNames())
		}
	}
	for _, p := range ch.updateTags {
		if p.value == "" {
			return usagef("tag %q has no revision: give TAG=REVISION", p.key)
		}
		t.setTag(p.key, p.value)
	}
	switch {
	case ch.toLatest:
		t.shares = []share{{latest, 100}}
		return nil
	case ch.toRevisions != nil:
		asked, err := ch.asked(ch.toRevisions, "to-revisions", func(name string) (string, error) { return name, nil })
		if err != nil {
			return err
		}
		return t.assign(asked)
	case ch.toTags != nil:
		asked, err := ch.asked(ch.toTags, "to-tags", func(name string) (string, error) {
			revision, ok := t.tagged(name)
			if !ok {
				return "", fmt.Errorf("the service has no tag %q; it has: %s", name, t.tagNames())
			}
			return revision, nil
		})
		if err != nil {
			return err
		}
		return t.assign(asked)
	}
	return nil
}

// asked reads percentages, by names that find turns into revisions.
func (ch *trafficChange) asked(pairs []pair, flag string, find func(string) (string, error)) ([]share, error) {
	var asked []share
	for _, p := range pairs {
		revision, err := find(p.key)
		if err != nil {
			return nil, err
		}
		percent, err := strconv.ParseInt(strings.TrimSuffix(p.value, "%"), 10, 64)
		if err != nil || percent < 0 || percent > 100 {
			return nil, usagef("--%s: %q is not a percentage: %s needs a whole number from 0 to 100", flag, p.value, p.key)
		}
		if i := slices.IndexFunc(asked, func(s share) bool { return s.revision == revision }); i >= 0 {
			asked[i].percent += percent
			continue
		}
		asked = append(asked, share{revision, percent})
	}
	return asked, nil
}

// revisions are the names of the revisions that the flags name.
func (ch *trafficChange) revisions() []string {
	var names []string
	for _, p := range ch.toRevisions {
		names = append(names, p.key)
	}
	for _, p := range ch.updateTags {
		names = append(names, p.value)
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == latest || name == "" })
}

func (t *traffic) tagNames() string {
	if len(t.tags) == 0 {
		return "none"
	}
	var names []string
	for _, g := range t.tags {
		names = append(names, g.name)
	}
	return strings.Join(names, ", ")
}
