package node

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-run/berth/engine"
)

func TestFindUser_FollowsTheImagesUser(t *testing.T) {
	passwd := []byte("root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\nlarge:x:4000000000:4000000000::/large:\n")
	group := []byte("root:x:0:\nstaff:x:50:web,other\nbig:x:4000000000:\n")
	for text, want := range map[string]user{
		"":                      {home: "/root"},
		"web":                   {uid: 33, gid: 34, home: "/srv", groups: []uint32{50}},
		"33":                    {uid: 33, gid: 34, home: "/srv", groups: []uint32{50}},
		"web:staff":             {uid: 33, gid: 50, home: "/srv"},
		"web:7":                 {uid: 33, gid: 7, home: "/srv"},
		"1000":                  {uid: 1000, home: "/home"},
		"nobody-known":          {home: "/root"}, // contract C76
		"2147483648":            {uid: 2147483648, home: "/home"},
		"4294967294:4294967294": {uid: 4294967294, gid: 4294967294, home: "/home"},
		"large:big":             {uid: 4000000000, gid: 4000000000, home: "/large"},
	} {
		got, err := findUser(text, nil, nil, passwd, group)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(user{})); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
}

func TestFindUser_RefusesNumbersThatAreTooLarge(t *testing.T) {
	for _, text := range []string{"4294967295", "4294967296", "99999999999999999999", "0:4294967295", "0:99999999999"} {
		who, err := findUser(text, nil, nil, nil, nil)
		if !refused(err, engine.ReasonInvalidUser, fmt.Sprintf("USER is %q", text)) {
			t.Errorf("%q: got user %d and %v", text, who.uid, err)
		}
	}
	if _, err := findUser("", new(int64(1<<31)), nil, nil, nil); !refused(err, engine.ReasonInvalidUser, "runAsUser 2147483648") {
		t.Errorf("got %v", err)
	}
}

func TestFindUser_TakesTheGroupThatIsAskedFor(t *testing.T) {
	passwd, group := []byte("runner:x:1000:1001::/home/runner:/bin/sh\n"), []byte("staff:x:50:runner\nvideo:x:44:runner\n")
	got, err := findUser("runner", nil, new(int64(50)), passwd, group)
	if err != nil {
		t.Fatal(err)
	}
	if got.uid != 1000 || got.gid != 50 || !slices.Equal(got.groups, []uint32{44}) {
		t.Errorf("got %+v", got)
	}
	if _, err := findUser("", nil, new(int64(-1)), nil, nil); !refused(err, engine.ReasonInvalidUser, "runAsGroup -1") {
		t.Errorf("got %v", err)
	}
}
