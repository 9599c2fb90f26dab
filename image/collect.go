package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Collect forgets the images that are not in inUse, references by digest, and were not asked for within minAge,
// then deletes the layers that no image needs, and what was pushed here for images that are gone. It returns how
// many bytes that freed. It is safe beside Pull: what a pull needs stays, and what it waits for is not touched.
func (s *Store) Collect(ctx context.Context, inUse []string, minAge time.Duration) (freed int64, err error) {
	keep := map[string]bool{}
	for _, ref := range inUse {
		_, digest, _ := strings.Cut(ref, "@")
		keep[digest] = true
	}
	before := time.Now().Add(-minAge)
	doomed, freed, err := s.drop(keep, before)
	for _, dir := range doomed {
		if ctx.Err() != nil {
			// The rest is in the directory for unfinished work. It is removed when the store opens.
			return freed, errors.Join(err, ctx.Err())
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}
	s.mu.RLock()
	for digest := range s.images {
		keep[digest] = true
	}
	s.mu.RUnlock()
	pushed, pushedErr := s.pushes.collect(ctx, keep, before)
	return freed + pushed, errors.Join(err, pushedErr)
}

// drop takes images and layers out of the store. It returns directories to be removed, which is the slow part.
func (s *Store) drop(keep map[string]bool, before time.Time) (doomed []string, freed int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	needed := map[string]bool{}
	for digest, e := range s.images {
		if !keep[digest] && e.used.Load() <= before.UnixNano() {
			removeErr := os.Remove(s.path("images", imageFile(digest)))
			if removeErr == nil || errors.Is(removeErr, fs.ErrNotExist) {
				delete(s.images, digest)
				s.logger.Info("forgetting an image that nothing uses", "image", e.image.Ref)
				continue
			}
			err = errors.Join(err, removeErr)
		}
		for _, id := range e.layers {
			needed[id] = true
		}
	}
	for id, l := range s.layers {
		if needed[id] || l.pins > 0 {
			continue
		}
		dir := s.layerDir(id)
		away, removeErr := os.MkdirTemp(s.tmp(), "gone-")
		if removeErr == nil {
			// The record goes first: a directory without one is no layer.
			removeErr = os.Remove(dir + ".json")
		}
		if removeErr == nil || errors.Is(removeErr, fs.ErrNotExist) {
			removeErr = os.Rename(dir, filepath.Join(away, "layer"))
		}
		if removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
			continue
		}
		delete(s.layers, id)
		freed += l.Size
		doomed = append(doomed, away)
	}
	return doomed, freed, err
}
