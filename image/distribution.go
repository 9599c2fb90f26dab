package image

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Limits of what may be pushed.
const (
	maxBlobBytes = 64 << 30
	maxUploads   = 256
)

// answer is an error in the words of the OCI distribution specification.
type answer struct {
	status  int
	code    string
	message string
}

func (a *answer) Error() string { return a.message }

// upload is a blob that is being received.
type upload struct {
	mu   sync.Mutex // held while a request writes
	sum  hash.Hash  // guarded by mu; of what was written
	size int64      // guarded by mu
	used time.Time  // guarded by mu
}

func (u *upload) idle() time.Duration {
	if !u.mu.TryLock() {
		return 0 // it is being written to
	}
	defer u.mu.Unlock()
	return time.Since(u.used)
}

func (u *upload) written() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.size
}

// distribution serves the OCI distribution API on a registry.
type distribution struct{ registry *registry }

// repoName and tagName are what the OCI distribution specification allows. A repository's escaped name must
// also be a file's name.
const (
	repoName     = `[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*`
	tagName      = `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
	maxRepoBytes = 160
)

// Registry serves the OCI distribution API under /v2/: push and pull of images that are named
// berth.localhost/REPOSITORY here. Who may use it is the caller's to decide. Blobs are verified as they arrive,
// and all that was acknowledged is on disk.
func (s *Store) Registry() http.Handler {
	d := &distribution{registry: &s.pushes}
	route := regexp.MustCompile(`^/v2/(` + repoName + `)/(blobs/uploads/|blobs/uploads|blobs/uploads/[0-9a-f]{32}|blobs/[^/]+|manifests/[^/]+|tags/list)$`)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
		var err error
		if r.URL.Path == "/v2/" || r.URL.Path == "/v2" {
			_, err = io.WriteString(w, "{}")
		} else if match := route.FindStringSubmatch(r.URL.Path); match == nil {
			err = &answer{http.StatusNotFound, "NAME_INVALID", fmt.Sprintf("no such path: %q; repository names are lower case letters, digits and .-_/", r.URL.Path)}
		} else if len(match[1]) > maxRepoBytes {
			err = &answer{http.StatusBadRequest, "NAME_INVALID", fmt.Sprintf("the repository's name has more than %d characters", maxRepoBytes)}
		} else {
			err = d.serve(w, r, match[1], match[2])
		}
		if err != nil {
			d.fail(w, r, err)
		}
	})
}

func (d *distribution) serve(w http.ResponseWriter, r *http.Request, repo, rest string) error {
	kind, last, _ := strings.Cut(rest, "/")
	id, isUpload := strings.CutPrefix(last, "uploads")
	id = strings.TrimPrefix(id, "/")
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case kind == "tags" && read:
		return d.tags(w, r, repo)
	case kind == "manifests" && read:
		return d.readManifest(w, r, repo, last)
	case kind == "manifests" && r.Method == http.MethodPut:
		return d.writeManifest(w, r, repo, last)
	case kind == "blobs" && !isUpload && read:
		return d.readBlob(w, r, last)
	case isUpload && id == "" && r.Method == http.MethodPost:
		return d.begin(w, r, repo)
	case isUpload && id != "":
		return d.continueUpload(w, r, repo, id)
	}
	return &answer{http.StatusMethodNotAllowed, "UNSUPPORTED", fmt.Sprintf("%s is not supported here", r.Method)}
}

// fail answers with an error. What is the server's fault is logged, too.
func (d *distribution) fail(w http.ResponseWriter, r *http.Request, err error) {
	var a *answer
	switch {
	case errors.As(err, &a):
	case isDisk(err):
		a = &answer{http.StatusInsufficientStorage, "UNKNOWN", fmt.Sprintf("disk full: no room for the image in %s on the server: free space there", d.registry.dir)}
		d.registry.logger.Error("receiving an image", "path", r.URL.Path, "error", err)
	default:
		a = &answer{http.StatusInternalServerError, "UNKNOWN", err.Error()}
		d.registry.logger.Error("serving an image", "path", r.URL.Path, "error", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(a.status)
	// The client is gone when this fails.
	_ = json.NewEncoder(w).Encode(map[string]any{
		"errors": []map[string]string{{"code": a.code, "message": a.message}},
	})
}

func (d *distribution) tags(w http.ResponseWriter, r *http.Request, repo string) error {
	entries, err := os.ReadDir(d.registry.tagDir(repo))
	if err != nil {
		return &answer{http.StatusNotFound, "NAME_UNKNOWN", fmt.Sprintf("nothing was pushed to %q", repo)}
	}
	tags := []string{}
	for _, e := range entries {
		if e.Name() > r.URL.Query().Get("last") {
			tags = append(tags, e.Name())
		}
	}
	slices.Sort(tags)
	if n, err := strconv.Atoi(r.URL.Query().Get("n")); err == nil && n >= 0 && n < len(tags) {
		tags = tags[:n]
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(map[string]any{"name": repo, "tags": tags})
}

func (d *distribution) readManifest(w http.ResponseWriter, r *http.Request, repo, identifier string) error {
	if !strings.HasPrefix(identifier, "sha256:") && !isTag(identifier) {
		return &answer{http.StatusNotFound, "MANIFEST_UNKNOWN", fmt.Sprintf("%q is neither a tag nor a digest", identifier)}
	}
	digest, err := d.registry.resolve(repo, identifier)
	if err != nil {
		return &answer{http.StatusNotFound, "MANIFEST_UNKNOWN", err.Error()}
	}
	raw, err := d.registry.source(repo).manifest(r.Context(), digest)
	if err != nil {
		return err
	}
	kind, err := mediaType(raw)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", string(kind))
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	if r.Method == http.MethodGet {
		_, err = w.Write(raw)
	}
	return err
}

func (d *distribution) writeManifest(w http.ResponseWriter, r *http.Request, repo, identifier string) error {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifestBytes))
	if err != nil {
		return &answer{http.StatusRequestEntityTooLarge, "SIZE_INVALID", fmt.Sprintf("reading the manifest, of which %d bytes are allowed: %v", maxManifestBytes, err)}
	}
	digest, tag := digestOf(raw), ""
	switch {
	case isTag(identifier):
		tag = identifier
	case identifier != digest:
		return &answer{http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("the manifest's digest is %s, not %s", digest, identifier)}
	}
	if err := d.registry.keep(repo, tag, digest, raw); err != nil {
		return err
	}
	w.Header().Set("Location", "/v2/"+repo+"/manifests/"+digest)
	w.Header().Set("Docker-Content-Digest", digest)
	w.WriteHeader(http.StatusCreated)
	return nil
}

func isTag(identifier string) bool {
	matched, err := regexp.MatchString(`^`+tagName+`$`, identifier)
	return err == nil && matched
}

func (d *distribution) readBlob(w http.ResponseWriter, r *http.Request, digest string) error {
	unknown := &answer{http.StatusNotFound, "BLOB_UNKNOWN", fmt.Sprintf("there is no blob %s here", digest)}
	if _, err := d.registry.stat(digest); err != nil {
		return unknown
	}
	f, err := os.Open(d.registry.blobFile(strings.TrimPrefix(digest, "sha256:")))
	if err != nil {
		return unknown
	}
	defer f.Close()
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Etag", `"`+digest+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
	return nil
}

// begin starts an upload, or ends it at once: when the blob is here already, or comes with this request.
func (d *distribution) begin(w http.ResponseWriter, r *http.Request, repo string) error {
	if mount := r.URL.Query().Get("mount"); mount != "" {
		if _, err := d.registry.stat(mount); err == nil {
			return created(w, repo, mount)
		}
	}
	var random [16]byte
	rand.Read(random[:])
	id := hex.EncodeToString(random[:])
	u := &upload{sum: sha256.New(), used: time.Now()}
	d.registry.mu.Lock()
	full := len(d.registry.uploads) >= maxUploads
	if !full {
		d.registry.uploads[id] = u
	}
	d.registry.mu.Unlock()
	if full {
		return &answer{http.StatusTooManyRequests, "TOOMANYREQUESTS", fmt.Sprintf("%d uploads are under way already: try again later", maxUploads)}
	}
	if digest := r.URL.Query().Get("digest"); digest != "" {
		return d.finish(w, r, repo, id, u, digest)
	}
	accepted(w, repo, id, 0)
	return nil
}

func (d *distribution) continueUpload(w http.ResponseWriter, r *http.Request, repo, id string) error {
	d.registry.mu.Lock()
	u := d.registry.uploads[id]
	d.registry.mu.Unlock()
	if u == nil {
		return &answer{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "there is no such upload, or the server was restarted: start again"}
	}
	switch r.Method {
	case http.MethodPatch:
		if err := d.receive(w, r, id, u); err != nil {
			return err
		}
		accepted(w, repo, id, u.written())
		return nil
	case http.MethodPut:
		return d.finish(w, r, repo, id, u, r.URL.Query().Get("digest"))
	case http.MethodGet:
		accepted(w, repo, id, u.written())
		return nil
	case http.MethodDelete:
		d.drop(id)
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return &answer{http.StatusMethodNotAllowed, "UNSUPPORTED", fmt.Sprintf("%s is not supported here", r.Method)}
}

// receive appends the request's body to an upload.
func (d *distribution) receive(w http.ResponseWriter, r *http.Request, id string, u *upload) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	defer func() { u.used = time.Now() }()
	if from, ok := rangeStart(r.Header.Get("Content-Range")); ok && from != u.size {
		w.Header().Set("Range", byteRange(u.size))
		return &answer{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", fmt.Sprintf("the upload goes on at byte %d, not at %d", u.size, from)}
	}
	f, err := os.OpenFile(d.registry.uploadFile(id), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Seek(u.size, io.SeekStart); err != nil {
		return errors.Join(err, f.Close())
	}
	body := http.MaxBytesReader(w, r.Body, maxBlobBytes-u.size)
	written, err := io.Copy(io.MultiWriter(f, u.sum), body)
	u.size += written
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		err = &answer{http.StatusRequestEntityTooLarge, "SIZE_INVALID", fmt.Sprintf("blobs may have at most %d bytes", int64(maxBlobBytes))}
	} else if err != nil && !isDisk(err) {
		err = &answer{http.StatusBadRequest, "BLOB_UPLOAD_INVALID", fmt.Sprintf("the connection broke after %d bytes: %v", u.size, err)}
	}
	return errors.Join(err, f.Close())
}

// finish makes an upload a blob when its digest is right, and ends it in any case.
func (d *distribution) finish(w http.ResponseWriter, r *http.Request, repo, id string, u *upload, digest string) error {
	defer d.drop(id)
	digits, err := digestHex(digest)
	if err != nil {
		return &answer{http.StatusBadRequest, "DIGEST_INVALID", err.Error()}
	}
	if err := d.receive(w, r, id, u); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if got := "sha256:" + hex.EncodeToString(u.sum.Sum(nil)); got != digest {
		return &answer{http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("the blob that arrived has the digest %s, not %s", got, digest)}
	}
	if err := settle(d.registry.uploadFile(id), d.registry.blobFile(digits)); err != nil {
		return err
	}
	return created(w, repo, digest)
}

// settle gives a received file its final name. It is on disk before.
func settle(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

func (d *distribution) drop(id string) {
	d.registry.mu.Lock()
	delete(d.registry.uploads, id)
	d.registry.mu.Unlock()
	// Gone already when the upload became a blob.
	_ = os.Remove(d.registry.uploadFile(id))
}

func created(w http.ResponseWriter, repo, digest string) error {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+digest)
	w.Header().Set("Docker-Content-Digest", digest)
	w.WriteHeader(http.StatusCreated)
	return nil
}

func accepted(w http.ResponseWriter, repo, id string, size int64) {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id)
	w.Header().Set("Docker-Upload-UUID", id)
	w.Header().Set("Range", byteRange(size))
	w.WriteHeader(http.StatusAccepted)
}

// byteRange is what was received, in the form that clients expect: the last byte's number, 0 for none.
func byteRange(size int64) string { return fmt.Sprintf("0-%d", max(size-1, 0)) }

func rangeStart(header string) (int64, bool) {
	first, _, ok := strings.Cut(strings.TrimPrefix(header, "bytes "), "-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(first, 10, 64)
	return n, err == nil
}
