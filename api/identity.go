package api

import (
	"fmt"
	"net/http"
	"time"

	"k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/berth-run/berth/identity"
	"github.com/berth-run/berth/serving"
)

// keysAge is how long others may keep the issuer's keys, in seconds.
const keysAge = 3600

// published answers with a document of the issuer, which everyone may read.
func (a *api) published(media string, document func() ([]byte, error)) handler {
	if a.Identity == nil {
		return nil
	}
	return func(w http.ResponseWriter, _ *http.Request) (any, error) {
		data, err := document()
		if err != nil {
			return nil, err
		}
		w.Header().Set("Content-Type", media)
		w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", keysAge))
		_, err = w.Write(data)
		if err != nil {
			a.Logger.Debug("an answer did not reach its client", "error", err)
		}
		return nil, nil
	}
}

// tokens issues tokens for service accounts; nil when there is no issuer.
func (a *api) tokens() handler {
	if a.Identity == nil {
		return nil
	}
	return a.issue
}

// issue makes a token for a service account, which says who its holder is to others: it opens nothing here.
func (a *api) issue(w http.ResponseWriter, r *http.Request) (any, error) {
	s, err := strictnessOf(r)
	if err != nil {
		return nil, err
	}
	dry, err := dryRun(r.URL.Query()["dryRun"])
	if err != nil {
		return nil, err
	}
	body, format, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	var request v1.TokenRequest
	warnings, err := decode(body, format, s, "the body", &request)
	if err != nil {
		return nil, err
	}
	warn(w, warnings)
	if kind := request.Kind; kind != "" && kind != "TokenRequest" {
		return nil, badRequest("the body is a %q: send a TokenRequest", kind)
	}
	name := r.PathValue("name")
	if list := tokenErrors(request.Spec); len(list) > 0 {
		return nil, errors.NewInvalid(v1.SchemeGroupVersion.WithKind("TokenRequest").GroupKind(), name, list)
	}
	account, err := a.Store.Get(r.Context(), serving.KindServiceAccount, r.PathValue("namespace"), name)
	if err != nil {
		return nil, err
	}
	life := identity.DefaultLife
	if seconds := request.Spec.ExpirationSeconds; seconds != nil {
		life = time.Duration(min(*seconds, int64(identity.MostLife/time.Second))) * time.Second
	}
	subject := identity.Subject{Namespace: account.GetNamespace(), Account: name, UID: string(account.GetUID())}
	if len(request.Spec.Audiences) == 0 {
		request.Spec.Audiences = []string{a.Identity.URL()}
	}
	if !dry {
		token, err := a.Identity.Issue(subject, request.Spec.Audiences, life)
		if err != nil {
			return nil, err
		}
		request.Status.Token = token.Text
		request.Status.ExpirationTimestamp.Time = token.Expires
	}
	lived := int64(life / time.Second)
	request.Spec.ExpirationSeconds = &lived
	request.SetGroupVersionKind(v1.SchemeGroupVersion.WithKind("TokenRequest"))
	request.Name, request.Namespace = name, account.GetNamespace()
	request.CreationTimestamp.Time = time.Now().Truncate(time.Second)
	return reply{http.StatusCreated, &request}, nil
}

func tokenErrors(spec v1.TokenRequestSpec) (list field.ErrorList) {
	path := field.NewPath("spec")
	if s := spec.ExpirationSeconds; s != nil && *s < serving.LeastTokenSeconds {
		list = append(list, field.Invalid(path.Child("expirationSeconds"), *s, "may not specify a duration less than 10 minutes"))
	} else if s != nil && *s > serving.MostTokenSeconds {
		list = append(list, field.Invalid(path.Child("expirationSeconds"), *s, "may not specify a duration larger than 2^32 seconds"))
	}
	for i, audience := range spec.Audiences {
		if audience == "" {
			list = append(list, field.Required(path.Child("audiences").Index(i), "name who the token is for"))
		}
	}
	if spec.BoundObjectRef != nil {
		list = append(list, field.Forbidden(path.Child("boundObjectRef"), "a token lives as long as it says, whatever becomes of other objects; ask for a short life"))
	}
	return list
}
