"""An S3 server: ``python -m tests.support.s3_server PORT``.

moto's own program answers each request in a thread of its own and looks at a condition some time
before it writes; S3 promises that of two conditional puts one fails. On one thread it keeps that.
"""

import logging
import sys

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=False)
