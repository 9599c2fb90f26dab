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

// reviewRules tells clients all that they may do. kubectl auth can-i --list asks.
func (a *api) reviewRules(w http.ResponseWriter, r *http.Request) (any, error) {
	body, format, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	var review v1.SelfSubjectRulesReview
	if _, err := decode(body, format, ignore, "the body", &review); err != nil {
		return nil, err
	}
	everything := []string{"*"}
	review.SetGroupVersionKind(v1.SchemeGroupVersion.WithKind("SelfSubjectRulesReview"))
	review.Status = v1.SubjectRulesReviewStatus{
		ResourceRules:    []v1.ResourceRule{{Verbs: everything, APIGroups: everything, Resources: everything}},
		NonResourceRules: []v1.NonResourceRule{{Verbs: everything, NonResourceURLs: everything}},
	}
	return reply{http.StatusCreated, &review}, nil
}
