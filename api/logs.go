package api

import (
	"context"
	"net/http"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/projections"
)

// logBody is one request. Bodies are never kept, so the contract's two fields
// for them are null.
type logBody struct {
	Object         string    `json:"object,omitempty"`
	ID             string    `json:"id"`
	CreatedAt      stamp     `json:"created_at"`
	Endpoint       string    `json:"endpoint"`
	Method         string    `json:"method"`
	ResponseStatus int       `json:"response_status"`
	UserAgent      *string   `json:"user_agent"`
	RequestBody    *struct{} `json:"request_body"`
	ResponseBody   *struct{} `json:"response_body"`
}

var logFields = []domain.Field{"log.id", "log.created_at", "log.endpoint", "log.method", "log.response_status", "log.user_agent"}

func logOf(row projections.Request) logBody {
	return logBody{
		ID: row.ID, CreatedAt: stamp(row.CreatedAt), Endpoint: row.Path, Method: row.Method,
		ResponseStatus: row.Status, UserAgent: orNull(row.UserAgent),
	}
}

func (a *API) listLogs(ctx context.Context, r *request) (answer, error) {
	p, err := page(r.URL.Query(), pageDefault)
	if err != nil {
		return answer{}, err
	}
	rows, more, err := a.Tables.Requests(ctx, r.by.Account, p)
	if err != nil {
		return answer{}, listError(err)
	}
	var data []logBody
	var ids []string
	for _, row := range rows {
		data, ids = append(data, logOf(row)), append(ids, row.ID)
	}
	return answer{status: http.StatusOK, body: listOf(data, more), fields: logFields, objects: ids}, nil
}

func (a *API) getLog(ctx context.Context, r *request) (answer, error) {
	id, err := parseID(r.PathValue("id"))
	if err != nil {
		return answer{}, &Error{422, "The `logId` must be a valid UUID.", "invalid_parameter"}
	}
	row, err := a.Tables.Request(ctx, r.by.Account, id.String())
	if err != nil {
		return answer{}, orNotFound(err, "Log not found")
	}
	body := logOf(row)
	body.Object = "log"
	return answer{status: http.StatusOK, body: body, fields: logFields, objects: []string{body.ID}}, nil
}
