"""The addresses of the pages; the WebSocket's is in asgi.py."""

from django.urls import path

from chat import views

urlpatterns = [
    path("", views.landing, name="landing"),
    path("enter/", views.enter, name="enter"),
    path("room/<str:room>/", views.room, name="room"),
    path("counting/", views.counting, name="counting"),
    path("healthz/", views.health, name="health"),
]
