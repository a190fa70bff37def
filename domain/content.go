package domain

// ContentRef points to private or large data that is kept beside the log, sealed.
type ContentRef struct {
	Parts  []ContentPart `json:"parts"`
	SHA256 string        `json:"sha256"` // of the bytes as they are stored, hex
	Size   int           `json:"size"`   // of the bytes as they are stored
}

// ContentPart is a stretch of one message of the content log.
type ContentPart struct {
	Seq uint64 `json:"seq"`
	Off int    `json:"off"`
	Len int    `json:"len"`
}
