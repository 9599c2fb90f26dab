package api

import (
	"net/http"

	"k8s.io/api/authorization/v1"
)

// reviewAccess tells clients what they may do, which is everything: whoever gets here has the token. kubectl auth can-i
// asks, and consoles do before they show what can be done.
func (a *api) reviewAccess(w http.ResponseWriter, r *http.Request) (any, error) {
	body, format, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	var review v1.SelfSubjectAccessReview
	if _, err := decode(body, format, ignore, "the body", &review); err != nil {
		return nil, err
	}
	review.SetGroupVersionKind(v1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview"))
	review.Status = v1.SubjectAccessReviewStatus{Allowed: true, Reason: "the server's token allows everything"}
	return reply{http.StatusCreated, &review}, nil
}
