package api

import (
	"net/http"

	"k8s.io/api/authentication/v1"
)

// reviewUser tells clients who they are. kubectl auth whoami asks.
func (a *api) reviewUser(w http.ResponseWriter, r *http.Request) (any, error) {
	body, format, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	var review v1.SelfSubjectReview
	if _, err := decode(body, format, ignore, "the body", &review); err != nil {
		return nil, err
	}
	review.SetGroupVersionKind(v1.SchemeGroupVersion.WithKind("SelfSubjectReview"))
	review.Status.UserInfo = v1.UserInfo{Username: a.User, Groups: []string{"system:authenticated"}}
	return reply{http.StatusCreated, &review}, nil
}
