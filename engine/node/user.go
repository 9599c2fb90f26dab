package node

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-run/berth/engine"
)

// user is who the container's program runs as.
type user struct {
	uid, gid uint32
	groups   []uint32 // supplementary
	home     string   // "/home" when /etc/passwd has none (contract C29)
}

// passwdEntry is a line of /etc/passwd.
type passwdEntry struct {
	name     string
	uid, gid uint32
	home     string
}

// groupEntry is a line of /etc/group.
type groupEntry struct {
	name    string
	gid     uint32
	members []string
}

// findUser decides who runs: runAsUser when it is set (contract KM16), else the image's USER, "NAME", "UID",
// and either with ":GROUP" or ":GID" (KS18), else root. A name that is not in the image is root (C76). runAsGroup, when
// it is set, replaces the user's group and leaves the supplementary ones.
func findUser(imageUser string, runAsUser, runAsGroup *int64, passwd, group []byte) (user, error) {
	who, err := findOwnUser(imageUser, runAsUser, passwd, group)
	if err != nil || runAsGroup == nil {
		return who, err
	}
	if *runAsGroup < 0 || *runAsGroup > math.MaxInt32 {
		return user{}, invalidUser("runAsGroup %d is not a group ID: want 0 to %d", *runAsGroup, math.MaxInt32)
	}
	who.gid = uint32(*runAsGroup)
	who.groups = slices.DeleteFunc(who.groups, func(gid uint32) bool { return gid == who.gid })
	return who, nil
}

// findOwnUser is findUser without a runAsGroup.
func findOwnUser(imageUser string, runAsUser *int64, passwd, group []byte) (user, error) {
	people, groups := parsePasswd(passwd), parseGroup(group)
	who := user{home: "/home"}
	name, groupName, _ := strings.Cut(strings.TrimSpace(imageUser), ":")
	if runAsUser != nil {
		if *runAsUser < 0 || *runAsUser > math.MaxInt32 {
			return user{}, invalidUser("runAsUser %d is not a user ID: want 0 to %d", *runAsUser, math.MaxInt32)
		}
		name, groupName = strconv.FormatInt(*runAsUser, 10), ""
	}
	uid, numeric := parseID(name)
	if !numeric && isNumber(name) {
		return user{}, invalidUser("the image's USER is %q, and the user ID %s is too large: want 0 to %d", imageUser, name, maxID)
	}
	i := slices.IndexFunc(people, func(p passwdEntry) bool {
		return p.name == name && name != "" || numeric && p.uid == uid
	})
	switch {
	case i >= 0:
		p := people[i]
		who.uid, who.gid = p.uid, p.gid
		if p.home != "" {
			who.home = p.home
		}
		who.groups = groupsOf(p.name, p.gid, groups)
	case numeric:
		who.uid = uid
	default: // nobody, or a name that the image does not know: root
		if i := slices.IndexFunc(people, func(p passwdEntry) bool { return p.uid == 0 }); i >= 0 && people[i].home != "" {
			who.home = people[i].home
		}
	}
	if groupName == "" {
		return who, nil
	}
	// A group that is named replaces the user's own and its supplementary ones.
	gid, numeric := parseID(groupName)
	if i := slices.IndexFunc(groups, func(g groupEntry) bool { return g.name == groupName }); i >= 0 {
		gid, numeric = groups[i].gid, true
	}
	if !numeric && isNumber(groupName) {
		return user{}, invalidUser("the image's USER is %q, and the group ID %s is too large: want 0 to %d", imageUser, groupName, maxID)
	}
	if !numeric {
		return user{}, invalidUser("the image's USER is %q, and its /etc/group has no group %q: use a numeric group, or add it to the image", imageUser, groupName)
	}
	who.gid, who.groups = gid, nil
	return who, nil
}

// check refuses a user with IDs that the instance does not have.
func (u user) check(m ids) error {
	for _, id := range append([]uint32{u.uid, u.gid}, u.groups...) {
		if !m.has(id) {
			return &engine.StartError{
				Reason: engine.ReasonInvalidUser,
				Err: fmt.Errorf("the container is to run as user %d with the groups %v, and an instance has users and groups 0 to %d only: use smaller ones, or start the server with --user-namespaces=off",
					u.uid, append([]uint32{u.gid}, u.groups...), idsEach-1),
			}
		}
	}
	return nil
}

// checkNotRoot refuses root to a container that must not run as that.
func (u user) checkNotRoot(imageUser string, runAsUser *int64) error {
	switch {
	case u.uid != 0:
		return nil
	case runAsUser != nil:
		return invalidUser("the container has runAsNonRoot, and runAsUser 0 is root: give it another runAsUser")
	case imageUser == "":
		return invalidUser("the container has runAsNonRoot, and its image names no USER and so runs as root: give it a runAsUser, or the image a USER")
	}
	return invalidUser("the container has runAsNonRoot, and its image's USER %q is root: give it a runAsUser, or the image another USER", imageUser)
}

func groupsOf(name string, primary uint32, groups []groupEntry) []uint32 {
	var ids []uint32
	for _, g := range groups {
		if g.gid != primary && slices.Contains(g.members, name) {
			ids = append(ids, g.gid)
		}
	}
	return ids
}

// maxID is the largest user or group ID: the kernel takes the next, -1, for "leave it as it is".
const maxID = math.MaxUint32 - 1

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}

// isNumber reports whether s has nothing but digits: no name may be that.
func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func invalidUser(format string, args ...any) error {
	return &engine.StartError{Reason: engine.ReasonInvalidUser, Err: fmt.Errorf(format, args...)}
}

func parsePasswd(text []byte) []passwdEntry {
	var entries []passwdEntry
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 {
			continue
		}
		uid, uidOK := parseID(f[2])
		gid, gidOK := parseID(f[3])
		if !uidOK || !gidOK {
			continue
		}
		e := passwdEntry{name: f[0], uid: uid, gid: gid}
		if len(f) > 5 {
			e.home = f[5]
		}
		entries = append(entries, e)
	}
	return entries
}

func parseGroup(text []byte) []groupEntry {
	var entries []groupEntry
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 3 {
			continue
		}
		gid, ok := parseID(f[2])
		if !ok {
			continue
		}
		e := groupEntry{name: f[0], gid: gid}
		if len(f) > 3 {
			e.members = strings.Split(f[3], ",")
		}
		entries = append(entries, e)
	}
	return entries
}
