"""`python -m abs_orm_app.embedded start|stop DIRECTORY`."""

from abs_orm_app.embedded.cluster import main

if __name__ == "__main__":
    main()
